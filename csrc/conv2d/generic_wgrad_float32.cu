#include "conv2d/generic.cuh"

template void fastcnn::generic::launch_wgrad<float>(const GenericParams&, const Conv2dPlan&, cudaStream_t);
