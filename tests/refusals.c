/* A file system that refuses: LD_PRELOAD of this library fails some calls for some paths; see refusals.py. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static int count;

/* Whether a call is refused for a path; then errno is set. */
static int refused(const char *call, const char *path) {
  const char *calls = getenv("REFUSED_CALLS"), *number = getenv("REFUSED_ERRNO");
  const char *part = getenv("REFUSED_PATH"), *times = getenv("REFUSED_TIMES");
  const char *after = getenv("REFUSED_AFTER");
  if (!calls || !*calls || !strstr(calls, call) || (part && !strstr(path, part))) return 0;
  int before = __sync_fetch_and_add(&count, 1);
  if ((times && before >= atoi(times)) || (after && before < atoi(after))) return 0;
  errno = atoi(number);
  return 1;
}

static int refused_file(const char *call, int file) {
  char link[64], path[4096];
  int before = errno;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, path, sizeof path - 1);
  errno = before;
  if (length < 0) return 0;
  path[length] = 0;
  return refused(call, path);
}

#define REAL(name, result, ...) ((result (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

#define OPEN(name)                                                                         \
  int name(const char *path, int flags, ...) {                                             \
    va_list rest;                                                                          \
    va_start(rest, flags);                                                                 \
    mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;              \
    va_end(rest);                                                                          \
    if (refused("open", path)) return -1;                                                  \
    return REAL(name, int, const char *, int, ...)(path, flags, mode);                     \
  }
OPEN(open)
OPEN(open64)

#define STAT(name, type)                                                                   \
  int name(const char *path, struct type *to) {                                            \
    if (refused("stat", path)) return -1;                                                  \
    return REAL(name, int, const char *, struct type *)(path, to);                         \
  }
STAT(stat, stat)
STAT(stat64, stat64)
STAT(lstat, stat)
STAT(lstat64, stat64)

ssize_t read(int file, void *to, size_t size) {
  if (refused_file("read", file)) return -1;
  return REAL(read, ssize_t, int, void *, size_t)(file, to, size);
}
ssize_t pread(int file, void *to, size_t size, off_t at) {
  if (refused_file("read", file)) return -1;
  return REAL(pread, ssize_t, int, void *, size_t, off_t)(file, to, size, at);
}
ssize_t pread64(int file, void *to, size_t size, off64_t at) {
  if (refused_file("read", file)) return -1;
  return REAL(pread64, ssize_t, int, void *, size_t, off64_t)(file, to, size, at);
}
DIR *opendir(const char *path) {
  return refused("list", path) ? NULL : REAL(opendir, DIR *, const char *)(path);
}
int chmod(const char *path, mode_t mode) {
  return refused("chmod", path) ? -1 : REAL(chmod, int, const char *, mode_t)(path, mode);
}
int fchmod(int file, mode_t mode) {
  return refused_file("chmod", file) ? -1 : REAL(fchmod, int, int, mode_t)(file, mode);
}
int fsync(int file) { return refused_file("sync", file) ? -1 : REAL(fsync, int, int)(file); }
int fdatasync(int file) { return refused_file("sync", file) ? -1 : REAL(fdatasync, int, int)(file); }
int flock(int file, int how) { return refused_file("lock", file) ? -1 : REAL(flock, int, int, int)(file, how); }
