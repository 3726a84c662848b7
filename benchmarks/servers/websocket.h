/* What the load and the server of this directory need of RFC 6455, and how they give up. */

#ifndef WEBSOCKET_H
#define WEBSOCKET_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TEXT = 0x1, BINARY = 0x2, CLOSE = 0x8, PING = 0x9, PONG = 0xA, FIN = 0x80, MASKED = 0x80 };
enum { RSV1 = 0x40, KEY_SIZE = 24, ACCEPT_SIZE = 28, HEAD_MOST = 14 };

__attribute__((noreturn, format(printf, 1, 2))) static inline void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

static inline void *allocated(size_t size)
{
    void *memory = calloc(1, size ? size : 1);
    if (!memory)
        fail("no memory for %zu bytes", size);
    return memory;
}

static inline int64_t nanoseconds(clockid_t clock)
{
    struct timespec now;
    if (clock_gettime(clock, &now))
        fail("the process whose clock is read is gone");
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static inline uint32_t rotated(uint32_t word, int by)
{
    return word << by | word >> (32 - by);
}

/* FIPS 180-4, 6.1.2: one block. */
static inline void sha1_block(uint32_t state[5], const uint8_t block[64])
{
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | block[4 * t + 1] << 16 | block[4 * t + 2] << 8
            | block[4 * t + 3];
    for (int t = 16; t < 80; t++)
        w[t] = rotated(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    for (int t = 0; t < 80; t++) {
        uint32_t f, k;
        if (t < 20)
            f = (b & c) | (~b & d), k = 0x5a827999;
        else if (t < 40)
            f = b ^ c ^ d, k = 0x6ed9eba1;
        else if (t < 60)
            f = (b & c) | (b & d) | (c & d), k = 0x8f1bbcdc;
        else
            f = b ^ c ^ d, k = 0xca62c1d6;
        uint32_t next = rotated(a, 5) + f + e + k + w[t];
        e = d, d = c, c = rotated(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

/* RFC 4648, 4. */
static inline void base64(const uint8_t *data, size_t size, char *out)
{
    static const char digits[]
        = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (size_t at = 0; at < size; at += 3) {
        size_t left = size - at;
        uint32_t three
            = data[at] << 16 | (left > 1 ? data[at + 1] << 8 : 0) | (left > 2 ? data[at + 2] : 0);
        *out++ = digits[three >> 18];
        *out++ = digits[three >> 12 & 63];
        *out++ = left > 1 ? digits[three >> 6 & 63] : '=';
        *out++ = left > 2 ? digits[three & 63] : '=';
    }
    *out = 0;
}

/* RFC 6455, 4.2.2, 5.4: Sec-WebSocket-Accept of a Sec-WebSocket-Key. */
static inline void accept_of(const char key[KEY_SIZE], char out[ACCEPT_SIZE + 1])
{
    uint32_t state[5] = { 0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0 };
    uint8_t blocks[128] = { 0 }, digest[20];
    memcpy(blocks, key, KEY_SIZE);
    memcpy(blocks + KEY_SIZE, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    blocks[60] = 0x80; /* 60 bytes are one block, their length stands at the end of a second one */
    blocks[126] = 60 * 8 >> 8, blocks[127] = 60 * 8 & 255;
    sha1_block(state, blocks);
    sha1_block(state, blocks + 64);
    for (int i = 0; i < 20; i++)
        digest[i] = state[i / 4] >> (24 - i % 4 * 8);
    base64(digest, 20, out);
}

/* RFC 6455, 5.2: the head of a whole message in one frame, without the masking key. */
static inline size_t frame_head(uint8_t *out, int first, uint64_t size, int masked)
{
    out[0] = first;
    if (size < 126) {
        out[1] = masked | size;
        return 2;
    }
    int bytes = size < 65536 ? 2 : 8;
    out[1] = masked | (bytes == 2 ? 126 : 127);
    for (int i = 0; i < bytes; i++)
        out[2 + i] = size >> 8 * (bytes - 1 - i);
    return 2 + bytes;
}

/* How many bytes the head has that starts with these two; a masking key counts. */
static inline size_t head_size(const uint8_t start[2])
{
    int size = start[1] & 127;
    return 2 + (size == 126 ? 2 : size == 127 ? 8 : 0) + (start[1] & MASKED ? 4 : 0);
}

static inline uint64_t payload_size(const uint8_t *head)
{
    uint64_t size = head[1] & 127;
    int bytes = size == 126 ? 2 : size == 127 ? 8 : 0;
    if (bytes)
        size = 0;
    for (int i = 0; i < bytes; i++)
        size = size << 8 | head[2 + i];
    return size;
}

/* RFC 6455, 5.3: eight bytes at a time, `phase` bytes of the payload were before these. */
static inline void mask(uint8_t *data, size_t size, const uint8_t key[4], size_t phase)
{
    uint8_t turned[8];
    uint64_t eight;
    for (int i = 0; i < 8; i++)
        turned[i] = key[(phase + i) % 4];
    memcpy(&eight, turned, 8);
    size_t at = 0;
    for (; at + 8 <= size; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        word ^= eight;
        memcpy(data + at, &word, 8);
    }
    for (; at < size; at++)
        data[at] ^= turned[at % 8];
}

#endif
