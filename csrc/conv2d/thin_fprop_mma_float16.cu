#include "conv2d/thin_fprop_mma.cuh"

template void fastcnn::thin::launch_fprop_mma<__half>(const ThinFpropParams&, const ThinPlan&, cudaStream_t);
