#include "conv2d/grouped_image_mma.cuh"

template void fastcnn::grouped::launch_image_mma<__nv_bfloat16>(const GroupedImageParams&, bool,
                                                                const GroupedPlan&, cudaStream_t);
