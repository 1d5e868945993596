// A file with given bytes in the working directory, removed with the object.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <vector>

class TemporaryFile {
public:
    explicit TemporaryFile(const std::vector<unsigned char>& bytes) {
        const int fd = ::mkstemp(path_.data());
        std::size_t at = 0;
        while (at < bytes.size()) {
            const ssize_t put = ::write(fd, bytes.data() + at, bytes.size() - at);
            if (put <= 0) std::abort();
            at += static_cast<std::size_t>(put);
        }
        ::close(fd);
    }
    ~TemporaryFile() { ::unlink(path_.c_str()); }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    const std::string& path() const { return path_; }

private:
    std::string path_ = "firstlight-test-XXXXXX";
};

inline std::vector<unsigned char> pattern(std::size_t size_bytes, unsigned seed = 1) {
    std::vector<unsigned char> bytes(size_bytes);
    unsigned state = seed;
    for (unsigned char& byte : bytes) {
        state = state * 1664525U + 1013904223U;
        byte = static_cast<unsigned char>(state >> 24);
    }
    return bytes;
}
