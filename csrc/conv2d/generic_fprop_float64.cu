#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_fprop<double>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
