/* The load: N connections, each with a window of messages in flight, one epoll.
 *
 *   load echo PORT PATH KIND PAYLOADS COUNT CONNECTIONS WINDOW WARM SECONDS PID...
 *   load handshakes PORT PATH AT_ONCE WARM SECONDS PID...
 *   load hold PORT PATH FIRST MORE OFFER [MESSAGE]
 *
 * echo: KIND is text, binary or json. The file PAYLOADS holds COUNT payloads of one size, which
 * every connection sends in turn, each beginning with another one; there have to be more of them
 * than WINDOW, so that a lost, a repeated or a swapped message is found. Of what comes back every
 * byte is looked at: one frame a message, its opcode, its length, its payload. JSON may come back
 * with other blanks between its tokens. Frames are made and masked before the clock runs.
 *
 * handshakes: AT_ONCE connections open, check the server's half of the handshake, close with a
 * close frame, wait for the server's and for its FIN, and begin anew.
 *
 * hold: opens FIRST connections, prints "held", waits for a line, opens MORE, prints "held", and
 * keeps all of them until its input ends. With OFFER=1 permessage-deflate is offered and has to be
 * accepted. MESSAGE is a file with the payload of a compressed text message (RFC 7692): each
 * connection sends it and reads the answer, all answers have to be the same, and it is printed.
 *
 * What was counted goes to the standard output as JSON, times in nanoseconds; PIDs are the
 * processes of the server, whose CPU clocks are read at the same moments as all others. Anything
 * wrong: one line on the standard error, and exit 1.
 */

#define _GNU_SOURCE
#include "websocket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { READ = 1 << 18, PATIENCE = 20, HEADERS_MOST = 4096, SLICES = 64 };

static int port;
static const char *path;

/* ---- sockets and the handshake ---- */

static int connected(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
    struct timeval patience = { .tv_sec = PATIENCE };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address))
        fail("no connection to port %d: %s", port, strerror(errno));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    return fd;
}

static void nonblocking(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

static void send_all(int fd, const void *data, size_t size)
{
    while (size) {
        ssize_t sent = send(fd, data, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("the server takes nothing more: %s", strerror(errno));
        data = (const char *)data + sent, size -= sent;
    }
}

/* Blocks until so many bytes have come. */
static void receive_all(int fd, uint8_t *data, size_t size)
{
    while (size) {
        ssize_t got = recv(fd, data, size, 0);
        if (got <= 0)
            fail(got ? "nothing came for %d s" : "the server ended the connection", PATIENCE);
        data += got, size -= got;
    }
}

/* RFC 6455, 4.1, with the headers of a browser; another key each time. */
static void ask(int fd, char key[KEY_SIZE + 1], bool offer)
{
    static uint64_t number = 0x9e3779b97f4a7c15;
    uint8_t nonce[16];
    for (int i = 0; i < 16; i++) {
        number = number * 6364136223846793005 + 1442695040888963407;
        nonce[i] = number >> 56;
    }
    base64(nonce, 16, key);
    char request[HEADERS_MOST];
    int size = snprintf(request, sizeof request,
        "GET %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n"
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko)\r\n"
        "Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en-GB,en;q=0.9\r\n%s\r\n",
        path, port, key,
        offer ? "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\n" : "");
    send_all(fd, request, size);
}

/* The value of a header, up to the end of its line. */
static const char *header(const char *head, const char *name)
{
    const char *line = strcasestr(head, name);
    return line ? line + strlen(name) + strspn(line + strlen(name), " \t") : "";
}

/* RFC 6455, 4.1: what a client has to check of the server's half. */
static void check_answer(const char *head, const char *key, bool offered)
{
    char accept[ACCEPT_SIZE + 1];
    accept_of(key, accept);
    if (strncmp(head, "HTTP/1.1 101 ", 13))
        fail("%s: instead of a 101: %.*s", path, (int)strcspn(head, "\r\n"), head);
    if (strncmp(header(head, "\r\nSec-WebSocket-Accept:"), accept, ACCEPT_SIZE))
        fail("%s: Sec-WebSocket-Accept is not %s", path, accept);
    if (offered != !strncmp(header(head, "\r\nSec-WebSocket-Extensions:"), "permessage-def", 14))
        fail("%s: permessage-deflate was %s", path, offered ? "refused" : "never offered");
}

/* Blocks until the whole head is there, and takes nothing of what follows. */
static void answered(int fd, const char *key, bool offered)
{
    char head[HEADERS_MOST + 1];
    size_t size = 0;
    while (size < 4 || memcmp(head + size - 4, "\r\n\r\n", 4)) {
        ssize_t seen = size < HEADERS_MOST ? recv(fd, head + size, HEADERS_MOST - size, MSG_PEEK) : 0;
        if (seen <= 0)
            fail("%s: no answer to the handshake", path);
        char *end = memmem(head, size + seen, "\r\n\r\n", 4);
        size_t take = end ? (size_t)(end + 4 - head) - size : (size_t)seen;
        receive_all(fd, (uint8_t *)head + size, take);
        size += take;
    }
    head[size] = 0;
    check_answer(head, key, offered);
}

static void send_close(int fd)
{
    /* 1000, with a masking key of zeros, which is as good as any (RFC 6455, 5.3) */
    static const uint8_t frame[] = { FIN | CLOSE, MASKED | 2, 0, 0, 0, 0, 1000 >> 8, 1000 & 255 };
    send_all(fd, frame, sizeof frame);
}

/* ---- the clocks ---- */

static clockid_t servers[64];
static int server_count;

/* clock_getcpuclockid(3): a process's CPU clock, formed of its id as Linux does. */
static void watch(char **pids)
{
    for (; *pids && server_count < 64; pids++)
        servers[server_count++] = (clockid_t)(~(unsigned)atoi(*pids) << 3 | 2);
}

struct moment {
    int64_t wall, load, server;
};

static struct moment moment(void)
{
    struct moment now = { nanoseconds(CLOCK_MONOTONIC), nanoseconds(CLOCK_PROCESS_CPUTIME_ID), 0 };
    for (int i = 0; i < server_count; i++)
        now.server += nanoseconds(servers[i]);
    return now;
}

/* How long it took, in buckets whose width is a 64th of a power of two. */
static uint64_t buckets[64 * SLICES];

static void took(int64_t time)
{
    int power = 63 - __builtin_clzll(time | SLICES);
    buckets[power * SLICES + (time >> (power - 6)) % SLICES]++;
}

static int64_t quantile(uint64_t count, double part)
{
    uint64_t below = 0;
    for (int i = 0; i < 64 * SLICES; i++)
        if ((below += buckets[i]) && below >= part * count)
            return (int64_t)(SLICES + i % SLICES) << (i / SLICES - 6);
    return 0;
}

/* What is counted is counted from the end of the warming up to the end of the time. */
static int64_t began, warm_until, until;
static bool warming = true;
static struct moment start, end;
static uint64_t count;

static void begin(const char *warm, const char *seconds)
{
    began = nanoseconds(CLOCK_MONOTONIC);
    warm_until = began + atof(warm) * 1e9;
    until = warm_until + atof(seconds) * 1e9;
}

/* Whether the time is over; it is not before something was counted, and by every clock. */
static bool over(void)
{
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    if (warming && now >= warm_until) {
        warming = false, count = 0, start = moment();
        memset(buckets, 0, sizeof buckets);
    }
    if (!end.wall && count && now >= until) {
        struct moment last = moment();
        if (last.server > start.server || !server_count)
            end = last;
    }
    return end.wall;
}

static void counted(int64_t time)
{
    count++;
    took(time);
}

static void print_counted(void)
{
    printf("{\"count\": %ju, \"wall\": %jd, \"load\": %jd, \"server\": %jd, \"p50\": %jd, "
           "\"p99\": %jd}\n",
        (uintmax_t)count, (intmax_t)(end.wall - start.wall), (intmax_t)(end.load - start.load),
        (intmax_t)(end.server - start.server), (intmax_t)quantile(count, 0.5),
        (intmax_t)quantile(count, 0.99));
}

static int poller;

static void poll_for(int fd, void *who, uint32_t what, int operation)
{
    struct epoll_event event = { .events = what, .data.ptr = who };
    if (epoll_ctl(poller, operation, fd, &event))
        fail("epoll: %s", strerror(errno));
}

static int ready(struct epoll_event *events, int most)
{
    int number = epoll_wait(poller, events, most, PATIENCE * 1000);
    if (number == 0)
        fail("nothing came for %d s", PATIENCE);
    return number < 0 ? 0 : number;
}

/* ---- echo ---- */

struct connection {
    int fd, index;
    uint64_t asked, received;      /* messages */
    uint64_t wanted, sent;         /* bytes */
    int64_t *asked_at;             /* of the messages in flight */
    uint8_t head[HEAD_MOST];
    size_t head_got, got, size;    /* of the message that is coming in */
    uint8_t *body;                 /* JSON is looked at when it is whole */
    bool blocked;
};

static uint8_t *payloads, *ring;
static size_t each, frame;         /* size of a payload, and of its masked frame */
static unsigned payload_count, window;
static int opcode;
static bool json;

static void read_payloads(const char *file)
{
    FILE *input = fopen(file, "rb");
    if (!input || fseek(input, 0, SEEK_END))
        fail("%s: %s", file, strerror(errno));
    size_t size = ftell(input);
    each = size / payload_count;
    payloads = allocated(size);
    rewind(input);
    if (fread(payloads, 1, size, input) != size || each * payload_count != size)
        fail("%s does not hold %u payloads of one size", file, payload_count);
    fclose(input);
}

/* All frames after each other, twice: whatever is to be sent next stands in one piece. */
static void make_ring(void)
{
    uint8_t head[HEAD_MOST];
    size_t size = frame_head(head, FIN | opcode, each, MASKED);
    frame = size + 4 + each;
    ring = allocated(2 * payload_count * frame);
    for (unsigned i = 0; i < payload_count; i++) {
        uint8_t *at = ring + i * frame, key[4] = { 0x37 + i, 0xfa ^ i, 0x21 + 3 * i, 0x3d ^ i };
        memcpy(at, head, size);
        memcpy(at + size, key, 4);
        memcpy(at + size + 4, payloads + i * each, each);
        mask(at + size + 4, each, key, 0);
    }
    memcpy(ring + payload_count * frame, ring, payload_count * frame);
}

static void flush(struct connection *c)
{
    while (c->sent < c->wanted) {
        const uint8_t *from = ring + c->sent % (payload_count * frame);
        ssize_t sent = send(c->fd, from, c->wanted - c->sent, MSG_NOSIGNAL);
        if (sent < 0 && errno != EAGAIN)
            fail("connection %d: sending: %s", c->index, strerror(errno));
        if (sent < 0)
            break;
        c->sent += sent;
    }
    bool blocked = c->sent < c->wanted;
    if (blocked != c->blocked)
        poll_for(c->fd, c, blocked ? EPOLLIN | EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    c->blocked = blocked;
}

static void ask_more(struct connection *c, unsigned messages, int64_t now)
{
    for (unsigned i = 0; i < messages; i++)
        c->asked_at[c->asked++ % window] = now;
    c->wanted += messages * frame;
    flush(c);
}

static const uint8_t *expected(const struct connection *c)
{
    return payloads + (c->index + c->received) % payload_count * each;
}

__attribute__((noreturn)) static void differs(
    const struct connection *c, const uint8_t *came, size_t from)
{
    const uint8_t *sent = expected(c) + from;
    size_t at = 0;
    while (came[at] == sent[at])
        at++;
    fail("connection %d, message %ju: byte %zu of %zu differs: sent 0x%02x, came 0x%02x", c->index,
        (uintmax_t)c->received, from + at, each, sent[at], came[at]);
}

/* Equal but for blanks between tokens (RFC 8259, 2). */
static bool same_json(const uint8_t *a, size_t a_size, const uint8_t *b, size_t b_size)
{
    bool quoted = false;
    size_t i = 0, j = 0;
    for (;; i++, j++) {
        while (!quoted && i < a_size && strchr(" \t\r\n", a[i]))
            i++;
        while (!quoted && j < b_size && strchr(" \t\r\n", b[j]))
            j++;
        if (i == a_size || j == b_size)
            return i == a_size && j == b_size;
        if (a[i] != b[j])
            return false;
        if (a[i] == '"' && (i == 0 || a[i - 1] != '\\'))
            quoted = !quoted;
    }
}

static void check_head(struct connection *c)
{
    c->size = payload_size(c->head);
    if ((c->head[0] & 15) == CLOSE)
        fail("connection %d: the server closed it", c->index);
    if (c->head[1] & MASKED)
        fail("connection %d: the server masks", c->index);
    if (c->head[0] == (FIN | PING)) /* not answered: no turn is that long */
        return;
    if (c->received == c->asked)
        fail("connection %d: a message that was not asked for", c->index);
    if (c->head[0] != (FIN | opcode))
        fail("connection %d, message %ju: 0x%02x instead of a whole frame of opcode %d", c->index,
            (uintmax_t)c->received, c->head[0], opcode);
    if (json ? c->size > 2 * each : c->size != each)
        fail("connection %d, message %ju: %zu bytes long instead of %zu", c->index,
            (uintmax_t)c->received, c->size, each);
}

static void check_piece(struct connection *c, const uint8_t *data, size_t size)
{
    if (c->head[0] == (FIN | PING))
        return;
    if (json)
        memcpy(c->body + c->got, data, size);
    else if (memcmp(data, expected(c) + c->got, size))
        differs(c, data, c->got);
}

/* Takes what was read apart; how many messages ended in it? */
static unsigned take(struct connection *c, const uint8_t *data, size_t size)
{
    unsigned whole = 0;
    while (size) {
        size_t wanted = c->head_got < 2 ? 2 : head_size(c->head);
        if (c->head_got < wanted) {
            size_t piece = wanted - c->head_got < size ? wanted - c->head_got : size;
            memcpy(c->head + c->head_got, data, piece);
            c->head_got += piece, data += piece, size -= piece;
            if (c->head_got < 2 || c->head_got < head_size(c->head))
                continue;
            check_head(c);
        }
        size_t piece = c->size - c->got < size ? c->size - c->got : size;
        check_piece(c, data, piece);
        c->got += piece, data += piece, size -= piece;
        if (c->got < c->size)
            break;
        if (c->head[0] == (FIN | opcode)) {
            if (json && !same_json(c->body, c->size, expected(c), each))
                fail("connection %d, message %ju: sent %.*s, came %.*s", c->index,
                    (uintmax_t)c->received, (int)each, expected(c), (int)c->size, c->body);
            c->received++, whole++;
        }
        c->head_got = c->got = c->size = 0;
    }
    return whole;
}

static unsigned receive(struct connection *c)
{
    static uint8_t buffer[READ];
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got == 0)
        fail("connection %d: the server ended it", c->index);
    if (got < 0 && errno != EAGAIN)
        fail("connection %d: receiving: %s", c->index, strerror(errno));
    return got < 0 ? 0 : take(c, buffer, got);
}

static struct connection *open_all(int connections)
{
    struct connection *all = allocated(connections * sizeof *all);
    char(*keys)[KEY_SIZE + 1] = allocated(connections * sizeof *keys);
    for (int i = 0; i < connections; i++) {
        all[i] = (struct connection) { .fd = connected(), .index = i };
        /* each begins with another payload: what is another's is seen to be wrong */
        all[i].sent = all[i].wanted = i % payload_count * frame;
        all[i].asked_at = allocated(window * sizeof(int64_t));
        all[i].body = allocated(json ? 2 * each : 0);
        ask(all[i].fd, keys[i], false);
    }
    for (int i = 0; i < connections; i++) {
        answered(all[i].fd, keys[i], false);
        nonblocking(all[i].fd);
        poll_for(all[i].fd, &all[i], EPOLLIN, EPOLL_CTL_ADD);
    }
    free(keys);
    return all;
}

/* As a good client does, so that the server is at rest in the others' turns. */
static void close_all(struct connection *all, int connections)
{
    for (int i = 0; i < connections; i++) {
        fcntl(all[i].fd, F_SETFL, fcntl(all[i].fd, F_GETFL) & ~O_NONBLOCK);
        send_close(all[i].fd);
    }
    for (int i = 0; i < connections; i++) {
        uint8_t rest[256];
        ssize_t got;
        while ((got = recv(all[i].fd, rest, sizeof rest, 0)) > 0)
            ;
        if (got < 0 && errno != ECONNRESET)
            fail("connection %d: the server does not end it", i);
        close(all[i].fd);
    }
}

static void echo(char **arguments)
{
    const char *kind = arguments[0];
    int connections = atoi(arguments[3]);
    json = !strcmp(kind, "json");
    opcode = !strcmp(kind, "binary") ? BINARY : TEXT;
    payload_count = atoi(arguments[2]);
    window = atoi(arguments[4]);
    if (payload_count <= window)
        fail("%u payloads are not more than %u in flight", payload_count, window);
    read_payloads(arguments[1]);
    make_ring();
    watch(arguments + 7);
    struct connection *all = open_all(connections);
    struct epoll_event *events = allocated(connections * sizeof *events);
    uint64_t in_flight = (uint64_t)connections * window;
    begin(arguments[5], arguments[6]);
    for (int i = 0; i < connections; i++)
        ask_more(&all[i], window, began);
    while (in_flight) {
        int number = ready(events, connections);
        bool ends = over();
        for (int i = 0; i < number; i++) {
            struct connection *c = events[i].data.ptr;
            if (!(events[i].events & ~EPOLLOUT)) {
                flush(c);
                continue;
            }
            unsigned whole = receive(c);
            int64_t now = nanoseconds(CLOCK_MONOTONIC);
            for (unsigned n = whole; n && !ends; n--)
                counted(now - c->asked_at[(c->received - n) % window]);
            if (ends)
                in_flight -= whole;
            else if (whole)
                ask_more(c, whole, now);
            if (c->blocked)
                flush(c);
        }
    }
    print_counted();
    close_all(all, connections);
}

/* ---- handshakes ---- */

struct visit {
    int fd;
    int64_t began;
    char key[KEY_SIZE + 1], head[HEADERS_MOST + 1];
    size_t got;
    bool closing;
};

static void enter(struct visit *v)
{
    *v = (struct visit) { .fd = connected(), .began = nanoseconds(CLOCK_MONOTONIC) };
    ask(v->fd, v->key, false);
    nonblocking(v->fd);
    poll_for(v->fd, v, EPOLLIN, EPOLL_CTL_ADD);
}

/* What came belongs to the handshake, then to the close frame; has the server hung up? */
static bool left(struct visit *v)
{
    ssize_t got = recv(v->fd, v->head + v->got, HEADERS_MOST - v->got, 0);
    if (got < 0 && errno == EAGAIN)
        return false;
    bool gone = got == 0 || (got < 0 && errno == ECONNRESET);
    if (gone && !v->closing)
        fail("%s: the server hung up in the handshake", path);
    if (gone && (v->got < 2 || (uint8_t)v->head[0] != (FIN | CLOSE)))
        fail("%s: the server hung up without a close frame", path);
    if (gone)
        return true;
    if (got < 0)
        fail("%s: %s", path, strerror(errno));
    v->got += got;
    v->head[v->got] = 0;
    if (v->closing || v->got < 4 || memcmp(v->head + v->got - 4, "\r\n\r\n", 4))
        return false;
    check_answer(v->head, v->key, false);
    v->closing = true, v->got = 0;
    send_close(v->fd);
    return false;
}

static void handshakes(char **arguments)
{
    int at_once = atoi(arguments[0]), open = at_once;
    struct visit *all = allocated(at_once * sizeof *all);
    struct epoll_event *events = allocated(at_once * sizeof *events);
    watch(arguments + 3);
    begin(arguments[1], arguments[2]);
    for (int i = 0; i < at_once; i++)
        enter(&all[i]);
    while (open) {
        int number = ready(events, at_once);
        bool ends = over();
        for (int i = 0; i < number; i++) {
            struct visit *v = events[i].data.ptr;
            if (!left(v))
                continue;
            close(v->fd);
            if (ends) {
                open--;
            } else {
                counted(nanoseconds(CLOCK_MONOTONIC) - v->began);
                enter(v);
            }
        }
    }
    print_counted();
}

/* ---- hold ---- */

static uint8_t *message, answer[1 << 16];
static size_t message_size, answer_size;

/* RFC 7692, 6: a compressed message has RSV1 set in its first frame. */
static void exchange(int fd)
{
    static const uint8_t key[4];
    uint8_t head[HEAD_MOST], came[sizeof answer];
    size_t size = frame_head(head, FIN | RSV1 | TEXT, message_size, MASKED);
    send_all(fd, head, size);
    send_all(fd, key, 4);
    send_all(fd, message, message_size);
    receive_all(fd, head, 2);
    receive_all(fd, head + 2, head_size(head) - 2);
    size = payload_size(head);
    if ((head[0] & ~RSV1) != (FIN | TEXT) || size > sizeof came - 1)
        fail("%s: 0x%02x and %zu bytes instead of a text", path, head[0], size);
    came[0] = head[0] & RSV1;
    receive_all(fd, came + 1, size++);
    if (!answer_size)
        memcpy(answer, came, answer_size = size);
    if (size != answer_size || memcmp(came, answer, size))
        fail("%s: two answers to one message", path);
}

static void held(int number, bool offer)
{
    while (number--) {
        char key[KEY_SIZE + 1];
        int fd = connected();
        ask(fd, key, offer);
        answered(fd, key, offer);
        if (message)
            exchange(fd);
    }
    printf("held ");
    for (size_t i = 0; i < answer_size; i++)
        printf("%02x", answer[i]);
    putchar('\n');
    fflush(stdout);
}

static void hold(char **arguments)
{
    struct rlimit limit;
    bool offer = atoi(arguments[2]);
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    if (arguments[3]) {
        payload_count = 1;
        read_payloads(arguments[3]);
        message = payloads, message_size = each;
    }
    held(atoi(arguments[0]), offer);
    if (getchar() == EOF)
        return;
    held(atoi(arguments[1]), offer);
    while (getchar() != EOF)
        ;
}

int main(int number, char **arguments)
{
    const char *mode = number > 3 ? arguments[1] : "";
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (number > 3)
        port = atoi(arguments[2]), path = arguments[3];
    if (!strcmp(mode, "echo") && number > 10)
        echo(arguments + 4);
    else if (!strcmp(mode, "handshakes") && number > 6)
        handshakes(arguments + 4);
    else if (!strcmp(mode, "hold") && number > 6)
        hold(arguments + 4);
    else
        fail("load: echo, handshakes or hold, and what the top of load.c says");
    return 0;
}
