#include "conv2d/depthwise_tile.cuh"

template void fastcnn::launch_depthwise_tile<__half>(const DepthwiseTileParams&, const DepthwiseImagePlan&,
                                                     int, cudaStream_t);
