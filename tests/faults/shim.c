/* Makes the n-th call that changes something below a folder fail, or ends the process there: SQLite's way of testing.
 *
 * Loaded in front of the C library (LD_PRELOAD). Armed by the environment, read at every call, so that a forked child can be armed
 * by itself:
 *   FAULTS_ROOT   only calls on files below it count (write, fsync, rename, mkdir, unlink, truncate, open for writing)
 *   FAULTS_AT     number of the call, from 1; none fails without it
 *   FAULTS_ERRNO  what it fails with, and every later one where FAULTS_STAYS is 1; 0 ends the process with SIGKILL instead
 *   FAULTS_LOG    file to which each call's name and path is appended
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int calls;

static int number_of(const char *name) { const char *text = getenv(name); return text ? atoi(text) : 0; }

/* Whether this call shall fail; errno is then set. */
static int fails(const char *call, const char *path)
{
    const char *root = getenv("FAULTS_ROOT"), *log = getenv("FAULTS_LOG"), *at = getenv("FAULTS_AT");
    if (!root || !path || strncmp(path, root, strlen(root)) != 0)
        return 0;
    int number = __sync_add_and_fetch(&calls, 1);
    if (log) {
        static ssize_t (*real_write)(int, const void *, size_t);
        static int (*real_open)(const char *, int, ...);
        if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
        if (!real_open) real_open = dlsym(RTLD_NEXT, "open");
        char line[PATH_MAX + 64];
        int size = snprintf(line, sizeof line, "%d\t%s\t%s\n", number, call, path + strlen(root));
        int file = real_open(log, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (file >= 0) {
            if (real_write(file, line, (size_t)size) < 0) abort();
            close(file);
        }
    }
    if (!at)
        return 0;
    int aim = atoi(at), stays = number_of("FAULTS_STAYS");
    if (number != aim && !(stays && number > aim))
        return 0;
    int code = number_of("FAULTS_ERRNO");
    if (!code)
        kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

static int fd_fails(const char *call, int fd)
{
    char link[64], path[PATH_MAX];
    if (!getenv("FAULTS_ROOT"))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0)
        return 0;
    path[size] = 0;
    return fails(call, path);
}

static int path_fails(const char *call, int folder, const char *path)
{
    char whole[PATH_MAX], link[64];
    if (!getenv("FAULTS_ROOT") || !path)
        return 0;
    if (path[0] == '/')
        return fails(call, path);
    if (folder == AT_FDCWD) {
        if (!getcwd(whole, sizeof whole)) return 0;
    } else {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t size = readlink(link, whole, sizeof whole - 1);
        if (size < 0) return 0;
        whole[size] = 0;
    }
    size_t used = strlen(whole);
    snprintf(whole + used, sizeof whole - used, "/%s", path);
    return fails(call, whole);
}

#define REAL(type, name, ...) static type (*real)(__VA_ARGS__); if (!real) real = dlsym(RTLD_NEXT, name)
#define ON_FD(type, name, head, params, args) \
    type name head { REAL(type, #name, params); if (fd_fails(#name, fd)) return -1; return real args; }
#define COMMA ,

ON_FD(ssize_t, write, (int fd, const void *from, size_t size), int COMMA const void * COMMA size_t, (fd, from, size))
ON_FD(ssize_t, writev, (int fd, const struct iovec *from, int count), int COMMA const struct iovec * COMMA int, (fd, from, count))
ON_FD(ssize_t, pwrite64, (int fd, const void *from, size_t size, off64_t at), int COMMA const void * COMMA size_t COMMA off64_t,
      (fd, from, size, at))
ON_FD(int, fsync, (int fd), int, (fd))
ON_FD(int, ftruncate64, (int fd, off64_t size), int COMMA off64_t, (fd, size))

int rename(const char *from, const char *to)
{
    REAL(int, "rename", const char *, const char *);
    return path_fails("rename", AT_FDCWD, to) ? -1 : real(from, to);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, "mkdir", const char *, mode_t);
    return path_fails("mkdir", AT_FDCWD, path) ? -1 : real(path, mode);
}

int unlink(const char *path)
{
    REAL(int, "unlink", const char *);
    return path_fails("unlink", AT_FDCWD, path) ? -1 : real(path);
}

int unlinkat(int folder, const char *path, int flags)
{
    REAL(int, "unlinkat", int, const char *, int);
    return path_fails("unlinkat", folder, path) ? -1 : real(folder, path, flags);
}

int rmdir(const char *path)
{
    REAL(int, "rmdir", const char *);
    return path_fails("rmdir", AT_FDCWD, path) ? -1 : real(path);
}

#define OPEN(name)                                                             \
    int name(const char *path, int flags, ...)                                 \
    {                                                                          \
        REAL(int, #name, const char *, int, ...);                              \
        mode_t mode = 0;                                                       \
        if (flags & (O_CREAT | __O_TMPFILE)) {                                 \
            va_list more;                                                      \
            va_start(more, flags);                                             \
            mode = va_arg(more, mode_t);                                       \
            va_end(more);                                                      \
        }                                                                      \
        if ((flags & (O_WRONLY | O_RDWR)) && path_fails("open", AT_FDCWD, path)) \
            return -1;                                                         \
        return real(path, flags, mode);                                        \
    }
OPEN(open)
OPEN(open64)
