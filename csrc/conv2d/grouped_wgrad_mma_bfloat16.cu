#include "conv2d/grouped_wgrad_mma.cuh"

template void fastcnn::grouped::launch_wgrad_mma<__nv_bfloat16>(const GroupedWgradParams&, const GroupedPlan&,
                                                                cudaStream_t);
