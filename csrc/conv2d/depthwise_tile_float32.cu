#include "conv2d/depthwise_tile.cuh"

template void fastcnn::launch_depthwise_tile<float>(const DepthwiseTileParams&, const DepthwiseImagePlan&,
                                                    int, cudaStream_t);
