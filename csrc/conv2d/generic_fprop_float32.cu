#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_fprop<float>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
