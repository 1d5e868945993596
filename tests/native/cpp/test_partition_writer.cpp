#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.hpp"
#include "crc32c.hpp"
#include "partition_writer.hpp"
#include "temporary_file.hpp"

using namespace firstlight;

namespace {

std::vector<unsigned char> read_whole(const std::string& path) {
    const int fd = ::open(path.c_str(), O_RDONLY);
    std::vector<unsigned char> bytes(static_cast<std::size_t>(::lseek(fd, 0, SEEK_END)));
    std::size_t at = 0;
    while (at < bytes.size()) {
        const ssize_t got = ::pread(fd, bytes.data() + at, bytes.size() - at, static_cast<off_t>(at));
        if (got <= 0) break;
        at += static_cast<std::size_t>(got);
    }
    ::close(fd);
    return bytes;
}

const std::byte* as_bytes(const std::vector<unsigned char>& bytes) {
    return reinterpret_cast<const std::byte*>(bytes.data());
}

}  // namespace

TEST(checksums_are_those_of_the_file_as_it_lies_on_the_disk) {
    const std::string path = "firstlight-partition-test";
    ::unlink(path.c_str());
    auto writer = PartitionWriter::create(path, 8192, 1 << 20);
    EXPECT(writer.ok());
    for (const std::size_t size : {1UL, 255UL, 4096UL, 70'000UL, 3'000'000UL, 0UL}) {
        const auto bytes = pattern(size, static_cast<unsigned>(size));
        EXPECT(writer.value().pad_to(256).ok());
        EXPECT(writer.value().position() % 256 == 0);
        EXPECT(writer.value().append(as_bytes(bytes), bytes.size()).ok());
    }
    const auto summary = writer.value().finish();
    EXPECT(summary.ok());
    const auto file = read_whole(path);
    EXPECT(summary.value().size_bytes == file.size() && file.size() % 4096 == 0);
    EXPECT(summary.value().chunk_crc32c.size() == (file.size() + 8191) / 8192);
    for (std::size_t chunk = 0; chunk * 8192 < file.size(); ++chunk)
        EXPECT(summary.value().chunk_crc32c[chunk] ==
               crc32c(file.data() + chunk * 8192, std::min<std::size_t>(8192, file.size() - chunk * 8192)));
    EXPECT(!writer.value().append(as_bytes(file), 1).ok());
    ::unlink(path.c_str());
}

TEST(a_full_device_is_disk_full_and_stays_so) {
    PartitionWriter writer = PartitionWriter::over(FileDescriptor(::open("/dev/full", O_WRONLY)), "/dev/full", 4096);
    const auto bytes = pattern(4 << 20);
    const Status status = writer.append(as_bytes(bytes), bytes.size());
    EXPECT(!status.ok() && status.error().code == ErrorCode::disk_full);
    EXPECT(!writer.append(as_bytes(bytes), 1).ok());
    const auto summary = writer.finish();
    EXPECT(!summary.ok() && summary.error().code == ErrorCode::disk_full);
}

TEST(bytes_still_staged_meet_a_full_device_at_the_end) {
    PartitionWriter writer = PartitionWriter::over(FileDescriptor(::open("/dev/full", O_WRONLY)), "/dev/full", 4096);
    const auto bytes = pattern(100);
    EXPECT(writer.append(as_bytes(bytes), bytes.size()).ok());
    const auto summary = writer.finish();
    EXPECT(!summary.ok() && summary.error().code == ErrorCode::disk_full);
}

TEST(an_existing_file_is_never_overwritten) {
    const TemporaryFile existing(pattern(10));
    EXPECT(!PartitionWriter::create(existing.path(), 4096, 0).ok());
    EXPECT(read_whole(existing.path()).size() == 10);
}
