#include "conv2d/pointwise.cuh"

template void fastcnn::pointwise::launch_mma<__half, fastcnn::PointwiseLie::kBothAlong>(
    Conv2dPass, const PointwiseParams&, const PointwisePlan&, cudaStream_t);
