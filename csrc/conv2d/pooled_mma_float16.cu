#include "conv2d/pooled_mma.cuh"

template void fastcnn::pooled::launch_mma<__half>(const fastcnn::PooledPlan&, cudaStream_t);
