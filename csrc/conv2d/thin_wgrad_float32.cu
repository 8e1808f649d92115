#include "conv2d/thin_wgrad.cuh"

template void fastcnn::thin::launch_wgrad<float>(const ThinWgradParams&, const ThinPlan&, cudaStream_t);
