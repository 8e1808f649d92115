#include "conv2d/thin_output_box.cuh"

template void fastcnn::thin::launch_output_box<__nv_bfloat16>(const ThinOutputBoxParams&, const ThinPlan&,
                                                              cudaStream_t);
