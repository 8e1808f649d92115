#include "conv2d/depthwise_wgrad_sweep_launch.cuh"

template void fastcnn::sweep::launch_sweep<__nv_bfloat16, true>(const DepthwiseSweepParams&,
                                                                const DepthwisePlan&, cudaStream_t);
