#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_fprop<__half>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
