#include "conv2d/pooled.cuh"

template void fastcnn::pooled::launch_fma<__nv_bfloat16>(const fastcnn::PooledPlan&, cudaStream_t);
