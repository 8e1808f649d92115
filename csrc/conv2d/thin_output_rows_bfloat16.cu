#include "conv2d/thin_output_rows.cuh"

template void fastcnn::thin::launch_output_rows<__nv_bfloat16>(const ThinOutputRowsParams&, const ThinPlan&,
                                                               cudaStream_t);
