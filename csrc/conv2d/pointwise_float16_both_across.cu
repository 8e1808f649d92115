#include "conv2d/pointwise.cuh"

template void fastcnn::pointwise::launch_mma<__half, fastcnn::PointwiseLie::kBothAcross>(
    Conv2dPass, const PointwiseParams&, const PointwisePlan&, cudaStream_t);
