// Memory that a thread keeps from call to call. Included inside a namespace.

template <typename T>
struct Scratch {
    T *data;
    int64_t size;

    // Room for `count` elements; what was there before is lost when it has to grow.
    T *room(int64_t count) {
        if (count > size) {
            free(data);
            data = (T *)malloc((size_t)count * sizeof(T));
            if (!data) abort();
            size = count;
        }
        return data;
    }
};
