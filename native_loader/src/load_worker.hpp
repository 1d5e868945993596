// The two ways in which a worker gets a load's blocks read.
#pragma once

#include "load_task.hpp"
#include "read_queue.hpp"

namespace firstlight {

// One blocking read after the other.
void read_by_calls(LoadTask& task);

// `depth` reads under way at a time; those that have come are summed while the others go on. A queue that breaks
// is left once it has given back what it had, and the rest is read by calls; then false.
bool read_by_queue(LoadTask& task, ReadQueue& queue, unsigned depth);

}  // namespace firstlight
