// cp.async: copies that were issued and have not landed.
#pragma once

#include <cstdint>

#include "emulator/where.h"

namespace fastcnn::emulator {

#pragma GCC visibility push(hidden)

// Issues a copy of the running thread; `source` is null for zeros. It has no effect on shared memory until it
// lands, and the bytes are out of bounds for everybody until then.
void issue_copy(uint32_t shared_address, const void* source, int bytes, Where where);
// Closes the thread's group of copies.
void commit_copies();
// Lands all but the thread's `pending` latest groups. Others may look after a barrier.
void wait_copies(int pending);

// At a thread's end, and after an error.
void land_all_copies();
void forget_pending_copies();

#pragma GCC visibility pop

}  // namespace fastcnn::emulator
