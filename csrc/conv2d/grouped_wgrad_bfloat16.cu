#include "conv2d/grouped_wgrad.cuh"

template void fastcnn::grouped::launch_wgrad<__nv_bfloat16>(const GroupedWgradParams&, const GroupedPlan&,
                                                            cudaStream_t);
