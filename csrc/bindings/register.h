// Registers implementations for the dispatch key that the build names: CUDA, or CPU for the emulated build.
//   FASTCNN_REGISTER(FASTCNN_DISPATCH_KEY, library) { library.impl("conv2d", TORCH_BOX(&conv2d)); }
#pragma once

#include <torch/csrc/stable/library.h>

// One macro level of its own, so that the key is expanded before it is pasted.
#define FASTCNN_REGISTER(key, library) STABLE_TORCH_LIBRARY_IMPL(fastcnn, key, library)
