#include "conv2d/depthwise_wgrad_large.cuh"

template void fastcnn::launch_depthwise_large_wgrad<__half>(const DepthwiseLargeWgradParams&,
                                                            const DepthwiseLargeWgradPlan&, cudaStream_t);
