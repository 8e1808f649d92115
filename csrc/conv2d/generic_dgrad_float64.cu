#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_dgrad<double>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
