// The whole of our test framework: a test registers itself, a failed check prints and is counted.
#pragma once

#include <cstdio>
#include <functional>
#include <string>
#include <vector>

namespace check {

struct Test {
    const char* name;
    std::function<void()> run;
};

inline std::vector<Test>& tests() {
    static std::vector<Test> all;
    return all;
}

inline int& failures() {
    static int count = 0;
    return count;
}

struct Register {
    Register(const char* name, std::function<void()> run) { tests().push_back({name, std::move(run)}); }
};

inline void expect(bool holds, const char* text, const char* file, int line) {
    if (holds) return;
    ++failures();
    std::fprintf(stderr, "%s:%d: not so: %s\n", file, line, text);
}

}  // namespace check

#define TEST(name)                                            \
    static void name();                                       \
    static const check::Register register_##name(#name, name); \
    static void name()
#define EXPECT(condition) check::expect((condition), #condition, __FILE__, __LINE__)
