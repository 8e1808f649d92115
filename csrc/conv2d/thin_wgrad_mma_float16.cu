#include "conv2d/thin_wgrad_mma.cuh"

template void fastcnn::thin::launch_wgrad_mma<__half>(const ThinWgradParams&, const ThinPlan&, cudaStream_t);
