#include "conv2d/pooled_mma.cuh"

template void fastcnn::pooled::launch_mma<__nv_bfloat16>(const fastcnn::PooledPlan&, cudaStream_t);
