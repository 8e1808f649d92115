#include "conv2d/thin_fprop.cuh"

template void fastcnn::thin::launch_fprop<float>(const ThinFpropParams&, const ThinPlan&, cudaStream_t);
