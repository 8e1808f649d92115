#include "conv2d/thin_output_rows.cuh"

template void fastcnn::thin::launch_output_rows<__half>(const ThinOutputRowsParams&, const ThinPlan&,
                                                        cudaStream_t);
