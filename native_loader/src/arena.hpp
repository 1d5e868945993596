// Memory as a file descriptor: filled once by its owner, mapped by any number of readers, outliving them.
#pragma once

#include <cstdint>
#include <memory>
#include <string_view>

#include "file_descriptor.hpp"
#include "mapping.hpp"
#include "result.hpp"

namespace firstlight {

enum class ArenaKind {
    automatic,  // the first of the next three that this machine grants
    hugetlb,    // memfd of reserved 2 MiB pages
    tmpfs,      // file on a detached tmpfs of our own, mounted huge=always
    memfd,      // memfd; prefaulting makes its pages huge where the kernel can (6.1)
    anonymous,  // no descriptor: memory of this process alone
};

std::string_view name_of(ArenaKind kind);

class Arena {
public:
    // `size_bytes` is rounded up to 2 MiB. Nothing is resident before prefault().
    static Result<Arena> create(std::uint64_t size_bytes, ArenaKind kind);

    ArenaKind kind() const { return kind_; }
    std::uint64_t size_bytes() const { return mapping_->size_bytes(); }
    // Once populated, and as far as memory is not too fragmented. False for anonymous memory, of which the kernel
    // promises nothing.
    bool has_huge_pages() const;
    // Shared, so that a load under way or an exported buffer keeps the memory when the arena is closed.
    const std::shared_ptr<Mapping>& mapping() const { return mapping_; }
    // A new descriptor through which the memory can be mapped for reading only.
    Result<FileDescriptor> read_only_fd() const;
    Status prefault(unsigned threads) const { return mapping_->populate(0, size_bytes(), threads); }

private:
    Arena(FileDescriptor fd, Mapping mapping, ArenaKind kind)
        : fd_(std::move(fd)), mapping_(std::make_shared<Mapping>(std::move(mapping))), kind_(kind) {}

    static Result<Arena> over(FileDescriptor fd, std::uint64_t size_bytes, ArenaKind kind);

    FileDescriptor fd_;
    std::shared_ptr<Mapping> mapping_;
    ArenaKind kind_;
};

}  // namespace firstlight
