/* Stands before the C library's file calls and, at the n-th of them, ends the process or answers with an error.
 *
 * Loaded by LD_PRELOAD into a process of a test; nothing happens until fault_arm. One thread at a time.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

static int armed, fault_at, fault_errno, calls, log_fd = -1;

/* The n-th call from now fails with `error`, or kills when that is 0; n of 0 only counts. Calls go to `log`. */
void fault_arm(int n, int error, int log) {
    armed = 1;
    calls = 0;
    fault_at = n;
    fault_errno = error;
    log_fd = log;
}

int fault_disarm(void) {
    armed = 0;
    return calls;
}

static void path_of(int fd, char* into, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const ssize_t length = readlink(link, into, size - 1);
    into[length < 0 ? 0 : length] = 0;
}

static ssize_t (*real_write)(int, const void*, size_t);

__attribute__((constructor)) static void find_write(void) {
    real_write = (ssize_t(*)(int, const void*, size_t))dlsym(RTLD_NEXT, "write");
}

/* 1 if the call must fail instead of being made. */
static int meet(const char* name, const char* path) {
    if (!armed) return 0;
    ++calls;
    if (log_fd >= 0) {
        char line[5000];
        const int length = snprintf(line, sizeof line, "%s %s\n", name, path);
        armed = 0;
        if (real_write(log_fd, line, (size_t)length) != length) raise(SIGABRT);
        armed = 1;
    }
    if (calls != fault_at) return 0;
    if (fault_errno == 0) kill(getpid(), SIGKILL);
    errno = fault_errno;
    return 1;
}

static int meet_fd(const char* name, int fd) {
    char path[4096];
    if (!armed) return 0;
    path_of(fd, path, sizeof path);
    return meet(name, path);
}

#define REAL(name) \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

ssize_t write(int fd, const void* data, size_t length) {
    return meet_fd("write", fd) ? -1 : real_write(fd, data, length);
}

int fsync(int fd) {
    REAL(fsync);
    return meet_fd("fsync", fd) ? -1 : real(fd);
}

int rename(const char* from, const char* to) {
    REAL(rename);
    return meet("rename", to) ? -1 : real(from, to);
}

int mkdir(const char* path, mode_t mode) {
    REAL(mkdir);
    return meet("mkdir", path) ? -1 : real(path, mode);
}

int fallocate64(int fd, int mode, off64_t offset, off64_t length) {
    REAL(fallocate64);
    return meet_fd("fallocate", fd) ? -1 : real(fd, mode, offset, length);
}

int flock(int fd, int operation) {
    static int (*real)(int, int);
    if (!real) real = (int (*)(int, int))dlsym(RTLD_NEXT, "flock");
    return meet_fd("flock", fd) ? -1 : real(fd, operation);
}

int open64(const char* path, int flags, ...) {
    REAL(open64);
    va_list words;
    va_start(words, flags);
    const mode_t mode = (flags & (O_CREAT | __O_TMPFILE)) ? va_arg(words, mode_t) : 0;
    va_end(words);
    const int makes = (flags & O_CREAT) != 0;
    return meet(makes ? "create" : "open", path) ? -1 : real(path, flags, mode);
}
