#include "conv2d/pooled.cuh"

template void fastcnn::pooled::launch_fma<__half>(const fastcnn::PooledPlan&, cudaStream_t);
