// Memory that a thread keeps from call to call, aligned for any vector. Included inside a
// namespace.

template <typename T>
struct Scratch {
    T *data;
    int64_t size;

    // Room for `count` elements; what was there before is lost when it has to grow.
    T *room(int64_t count) {
        if (count > size) {
            free(data);
            void *found;
            if (posix_memalign(&found, 64, (size_t)count * sizeof(T))) abort();
            data = (T *)found;
            size = count;
        }
        return data;
    }
};
