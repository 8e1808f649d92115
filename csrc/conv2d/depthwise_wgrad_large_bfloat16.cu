#include "conv2d/depthwise_wgrad_large.cuh"

template void fastcnn::launch_depthwise_large_wgrad<__nv_bfloat16>(const DepthwiseLargeWgradParams&,
                                                                   const DepthwiseLargeWgradPlan&,
                                                                   cudaStream_t);
