#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_wgrad<double>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
