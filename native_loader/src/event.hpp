// A one-way flag as a descriptor: readable from the moment it is set, so that an event loop can watch it.
#pragma once

#include <sys/eventfd.h>
#include <unistd.h>

#include <cstdint>

#include "file_descriptor.hpp"

namespace firstlight {

class Event {
public:
    Event() : fd_(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {}
    bool is_open() const { return fd_.is_open(); }
    int fd() const { return fd_.get(); }
    void set() const {
        const std::uint64_t one = 1;
        // Can only fail with a full counter, and then it is readable already.
        (void)!::write(fd_.get(), &one, sizeof one);
    }

private:
    FileDescriptor fd_;
};

}  // namespace firstlight
