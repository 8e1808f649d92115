#include "conv2d/thin_output_mma.cuh"

template void fastcnn::thin::launch_output_mma<__nv_bfloat16>(const ThinOutputParams&, const ThinPlan&,
                                                              cudaStream_t);
