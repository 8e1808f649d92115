#include "conv2d/pooled.cuh"

template void fastcnn::pooled::launch_fma<float>(const fastcnn::PooledPlan&, cudaStream_t);
