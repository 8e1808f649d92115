#include "conv2d/depthwise_wgrad_sweep_launch.cuh"

template void fastcnn::sweep::launch_sweep<float, true>(const DepthwiseSweepParams&, const DepthwisePlan&,
                                                        cudaStream_t);
