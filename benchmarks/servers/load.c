/* The load: N connections, each with a window of messages in flight, one epoll.
 *
 *   load echo PORT PATH KIND PAYLOADS COUNT CONNECTIONS WINDOW WARM SECONDS PID...
 *   load handshakes PORT PATH AT_ONCE WARM SECONDS PID...
 *   load fanout PORT PATH TEXT STREAM RECEIVERS WINDOW OFFER WARM SECONDS LEAST PID...
 *   load rooms PORT PATH TEXT CHANNELS SOCKETS WINDOW WARM SECONDS PID...
 *   load hold PORT PATH OFFER ADDRESS [MESSAGE]
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
 * fanout: RECEIVERS connections to PATH, which names a channel; the server says a text as soon as one
 * is in. One more connection, to /publish, sends what the server sends on to all of them: the text in
 * the file TEXT, whose first six bytes are the name of the channel, and eight of them, behind a
 * blank, are replaced by the number of the publication. WINDOW of them are in flight, which is:
 * published and not yet with every receiver. What the server sends has to be the same for all
 * receivers, byte by byte, in whole frames, and no more than was published; it is written to the
 * file STREAM, for whoever looks at what it says. Deliveries are counted, and timed is a publication
 * until the last receiver has it. With a LEAST, there are that many publications at least, if there
 * is time for them before the server sends pings; and all is done once more, with one more connection
 * to PATH, which is in and then reads nothing. What came of it is told too: the memory of the server's
 * processes when it came and at the end, how many publications it finds when it reads again, and the
 * code of the close frame behind them.
 *
 * rooms: CHANNELS channels, whose members are one to three of SOCKETS connections to PATH and the
 * names of their channels, with hyphens between them. What is published goes to a channel chosen at
 * random; its number is how many were published to that channel before. Every member has to get
 * every publication of its channels once, in order, in a whole frame that says what was published.
 *
 * hold: does what its input says, line by line, and answers pings meanwhile, until that ends. "open
 * N" opens so many more connections, from ADDRESS. "say": each that has not done so sends MESSAGE,
 * a file with the payload of a text message, compressed (RFC 7692) if that was offered, and reads
 * the answer; all answers have to be the same. The answer to both is "held" and what was answered.
 * "pings" is answered with how many there were so far.
 *
 * With OFFER=1 permessage-deflate is offered and has to be accepted.
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

enum { READ = 1 << 18, HEADERS_MOST = 4096, SLICES = 64 };
enum { PATIENCE = 20, LOST_AFTER = 5, STALLED_AFTER = 2, PINGLESS = 14 }; /* seconds */
enum { CHANNEL = 6, STAMP = 8, STAMP_AT = CHANNEL + 1, MEMBERS_MOST = 3 };

static int port;
static const char *path;
static struct in_addr from; /* any, unless told */
static int segment, room;   /* of TCP, and to receive; the kernel's choice, unless told */

/* ---- sockets and the handshake ---- */

/* Each address has some 28,000 ports to one of the server's. */
static void leave_from(int fd)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr = from };
    int one = 1;
    setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address))
        fail("cannot connect from there: %s", strerror(errno));
}

static int connected(void)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
    struct timeval patience = { .tv_sec = PATIENCE };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (from.s_addr)
        leave_from(fd);
    if (segment)
        setsockopt(fd, IPPROTO_TCP, TCP_MAXSEG, &segment, sizeof segment);
    if (room)
        setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &room, sizeof room);
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
static int server_ids[64], server_count;

/* clock_getcpuclockid(3): a process's CPU clock, formed of its id as Linux does. */
static void watch(char **pids)
{
    for (; *pids && server_count < 64; pids++) {
        server_ids[server_count] = atoi(*pids);
        servers[server_count++] = (clockid_t)(~(unsigned)atoi(*pids) << 3 | 2);
    }
}

/* Bytes of the servers that are in memory (proc_pid_statm(5)). */
static int64_t resident(void)
{
    int64_t pages, sum = 0;
    for (int i = 0; i < server_count; i++) {
        char name[64];
        snprintf(name, sizeof name, "/proc/%d/statm", server_ids[i]);
        FILE *input = fopen(name, "r");
        if (!input || fscanf(input, "%*d %jd", (intmax_t *)&pages) != 1)
            fail("the process whose memory is read is gone");
        fclose(input);
        sum += pages;
    }
    return sum * sysconf(_SC_PAGESIZE);
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
static uint64_t buckets[64 * SLICES], times;

static void took(int64_t time)
{
    int power = 63 - __builtin_clzll(time | SLICES);
    buckets[power * SLICES + (time >> (power - 6)) % SLICES]++;
    times++;
}

static int64_t quantile(double part)
{
    uint64_t below = 0;
    for (int i = 0; i < 64 * SLICES; i++)
        if ((below += buckets[i]) && below >= part * times)
            return (int64_t)(SLICES + i % SLICES) << (i / SLICES - 6);
    return 0;
}

/* What is counted is counted from the end of the warming up to the end of the time. */
static int64_t began, warm_until, until;
static bool warming = true, unfinished; /* though the time be over */
static struct moment start, end;
static uint64_t count;

static void begin(const char *warm, const char *seconds)
{
    warming = true, times = 0, end.wall = 0;
    began = nanoseconds(CLOCK_MONOTONIC);
    warm_until = began + atof(warm) * 1e9;
    until = warm_until + atof(seconds) * 1e9;
}

/* Whether the time is over; it is not before something was counted, and by every clock. */
static bool over(void)
{
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    if (warming && now >= warm_until) {
        warming = false, count = times = 0, start = moment();
        memset(buckets, 0, sizeof buckets);
    }
    if (!end.wall && times && now >= until && !unfinished) {
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
        (intmax_t)(end.server - start.server), (intmax_t)quantile(0.5),
        (intmax_t)quantile(0.99));
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
static void say_goodbye(int fd)
{
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    send_close(fd);
}

static void see_off(int fd, int index)
{
    uint8_t rest[256];
    ssize_t got;
    while ((got = recv(fd, rest, sizeof rest, 0)) > 0)
        ;
    if (got < 0 && errno != ECONNRESET)
        fail("connection %d: the server does not end it", index);
    close(fd);
}

static void close_all(struct connection *all, int connections)
{
    for (int i = 0; i < connections; i++)
        say_goodbye(all[i].fd);
    for (int i = 0; i < connections; i++)
        see_off(all[i].fd, i);
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

/* ---- fan-out ---- */

/* What the server sends to a receiver, which is the same for all: who is the first to get a part of
 * it appends it, the others compare. */
static uint8_t *stream;
static size_t stream_size, stream_room;
static size_t *ends, ends_room;    /* where each message ends */
static uint64_t messages;          /* that are whole in it */

struct receiver {
    int fd, index;
    size_t at;                     /* in the stream */
    uint64_t received;             /* messages */
};

static uint64_t published, complete; /* the text that says who is in counts as one */
static int *missing;               /* receivers that have not got it yet, of what is in flight */
static int64_t *published_at;
static int receiver_count, patience = LOST_AFTER;
static int64_t last_moment;        /* soon there may be pings, which each has its own of */

static void *grown(void *memory, size_t *room, size_t wanted, size_t item)
{
    if (wanted <= *room)
        return memory;
    *room = 2 * wanted;
    if (!(memory = realloc(memory, *room * item)))
        fail("no memory for %zu bytes", *room * item);
    return memory;
}

static void check_start(const uint8_t *frame, int index)
{
    if ((frame[0] & ~RSV1) != (FIN | TEXT) || frame[1] & MASKED)
        fail("receiver %d, message %ju: 0x%02x 0x%02x instead of a whole text frame", index,
            (uintmax_t)messages, frame[0], frame[1]);
}

static void extend(const struct receiver *r, const uint8_t *data, size_t size)
{
    stream = grown(stream, &stream_room, stream_size + size, 1);
    memcpy(stream + stream_size, data, size);
    stream_size += size;
    for (;;) {
        size_t begins = messages ? ends[messages - 1] : 0, left = stream_size - begins;
        const uint8_t *frame = stream + begins;
        if (left < 2 || left < head_size(frame) || left < head_size(frame) + payload_size(frame))
            return;
        check_start(frame, r->index);
        ends = grown(ends, &ends_room, messages + 1, sizeof *ends);
        ends[messages++] = begins + head_size(frame) + payload_size(frame);
    }
}

/* Takes what was read; how many messages ended in it? */
static unsigned deliver(struct receiver *r, const uint8_t *data, size_t size)
{
    size_t known = stream_size - r->at < size ? stream_size - r->at : size;
    if (memcmp(stream + r->at, data, known))
        fail("receiver %d, message %ju: other bytes than another receiver got", r->index,
            (uintmax_t)r->received);
    if (size > known)
        extend(r, data + known, size - known);
    r->at += size;
    unsigned whole = 0;
    for (; r->received < messages && ends[r->received] <= r->at; whole++)
        if (r->received++ == published)
            fail("receiver %d: a message that was not published", r->index);
    return whole;
}

static unsigned listen_to(struct receiver *r)
{
    static uint8_t buffer[READ];
    ssize_t got = recv(r->fd, buffer, sizeof buffer, 0);
    if (got == 0)
        fail("receiver %d: the server ended it", r->index);
    if (got < 0 && errno != EAGAIN)
        fail("receiver %d: receiving: %s", r->index, strerror(errno));
    return got < 0 ? 0 : deliver(r, buffer, got);
}

static void enter_many(struct receiver *all, bool offer)
{
    enum { BACKLOG = 64 }; /* that of a server may be as short */
    char keys[BACKLOG][KEY_SIZE + 1];
    for (int i = 0; i < receiver_count; i += BACKLOG) {
        int most = i + BACKLOG < receiver_count ? i + BACKLOG : receiver_count;
        for (int n = i; n < most; n++) {
            all[n] = (struct receiver) { .fd = connected(), .index = n };
            ask(all[n].fd, keys[n - i], offer);
        }
        for (int n = i; n < most; n++) {
            answered(all[n].fd, keys[n - i], offer);
            nonblocking(all[n].fd);
            poll_for(all[n].fd, &all[n], EPOLLIN, EPOLL_CTL_ADD);
        }
    }
}

static void put_digits(void *at, int digits, uint64_t number)
{
    for (char *digit = (char *)at + digits; digit-- > (char *)at; number /= 10)
        *digit = '0' + number % 10;
}

/* All in one piece; the masking key is of zeros, which is as good as any (RFC 6455, 5.3). */
static void publish(int fd, unsigned number)
{
    uint8_t head[HEAD_MOST] = { 0 };
    size_t size = frame_head(head, FIN | TEXT, each, MASKED) + 4;
    uint8_t *frames = allocated(number * (size + each)), *at = frames;
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < number; i++, published++) {
        memcpy(at, head, size);
        memcpy(at + size, payloads, each);
        put_digits(at + size + STAMP_AT, STAMP, published);
        at += size + each;
        published_at[published % window] = now;
        missing[published % window] = receiver_count;
    }
    send_all(fd, frames, at - frames);
    free(frames);
}

/* Counts what one receiver got. */
static void tick_off(struct receiver *r, unsigned whole, int64_t now, bool counts)
{
    count += counts ? whole : 0;
    for (uint64_t n = r->received - whole; n < r->received; n++)
        if (!--missing[n % window]) {
            complete++;
            if (counts)
                took(now - published_at[n % window]);
        }
}

/* Waits, and takes what came. */
static void listen_once(struct epoll_event *events, bool counts)
{
    int number = epoll_wait(poller, events, receiver_count + 1, patience * 1000);
    if (number == 0)
        fail("message %ju did not reach all %d receivers in %d s", (uintmax_t)complete,
            receiver_count, patience);
    for (int i = 0; i < number; i++) {
        struct receiver *r = events[i].data.ptr;
        if (!r)
            fail("the server sends something to the publisher, or ended it");
        unsigned whole = listen_to(r);
        if (whole)
            tick_off(r, whole, nanoseconds(CLOCK_MONOTONIC), counts);
    }
}

static void write_stream(const char *file)
{
    FILE *output = fopen(file, "wb");
    if (!output || fwrite(stream, 1, stream_size, output) != stream_size || fclose(output))
        fail("%s: %s", file, strerror(errno));
}

static int publisher(void)
{
    char key[KEY_SIZE + 1];
    const char *before = path;
    int fd = connected();
    path = "/publish";
    ask(fd, key, false);
    answered(fd, key, false);
    path = before;
    poll_for(fd, NULL, EPOLLIN, EPOLL_CTL_ADD);
    return fd;
}

/* Publishes for so long, and so many at least; all of it has arrived at the end. */
static void publish_on(int fd, struct epoll_event *events, char **times_told, unsigned least)
{
    uint64_t enough = published + least;
    begin(times_told[0], times_told[1]);
    publish(fd, window);
    while (complete < published) {
        unfinished = published < enough && nanoseconds(CLOCK_MONOTONIC) < last_moment;
        bool ends_now = over();
        listen_once(events, !ends_now);
        unsigned places = window - (published - complete);
        if (places && !ends_now)
            publish(fd, places);
    }
    print_counted();
}

/* A reader on a bad line: small segments, no room, and it does not read. The server's kernel takes a
 * few ten KiB for it. */
static int stalled(void)
{
    static const uint8_t ready[] = { FIN | TEXT, 5, 'r', 'e', 'a', 'd', 'y' };
    char key[KEY_SIZE + 1];
    uint8_t came[sizeof ready];
    segment = 536, room = 2048;
    int fd = connected();
    segment = room = 0;
    ask(fd, key, false);
    answered(fd, key, false);
    receive_all(fd, came, sizeof came);
    if (memcmp(came, ready, sizeof ready))
        fail("the one that is to stall was not told that it is in");
    return fd;
}

/* All of it; or 1 if it does not come, and 1006 if the connection has ended (RFC 6455, 7.1.5). */
static int all_of(int fd, uint8_t *into, size_t size)
{
    ssize_t got = size ? recv(fd, into, size, MSG_WAITALL) : 0;
    if (got == (ssize_t)size)
        return 0;
    return got > 0 || (got < 0 && errno == EAGAIN) ? 1 : 1006;
}

/* One more whole frame, which stays in `head` and `text`. */
static int next_whole(int fd, uint8_t *head, uint8_t *text)
{
    int end = all_of(fd, head, 2);
    if (!end)
        end = all_of(fd, head + 2, head_size(head) - 2);
    if (!end && payload_size(head) > each)
        fail("the stalled one: a frame of %ju bytes", (uintmax_t)payload_size(head));
    return end ? end : all_of(fd, text, payload_size(head));
}

/* Reads at last: what is left to it? */
static void print_stalled(int fd, uint64_t since, int64_t before)
{
    int64_t after = resident();
    uint64_t came = 0, last = since - 1;
    int code = 0;
    uint8_t head[HEAD_MOST], *text = allocated(each + 1);
    struct timeval patience = { .tv_sec = 1 };
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    while (!code && !(code = next_whole(fd, head, text))) {
        if (head[0] == (FIN | CLOSE)) {
            code = text[0] << 8 | text[1];
        } else if (head[0] != (FIN | PING)) {
            text[each] = 0;
            uint64_t number = strtoull((char *)text + STAMP_AT, NULL, 10);
            if (head[0] != (FIN | TEXT) || number <= last || number >= published)
                fail("the stalled one got publication %ju behind %ju", (uintmax_t)number,
                    (uintmax_t)last);
            last = number, came++;
        }
    }
    printf("{\"before\": %jd, \"after\": %jd, \"published\": %ju, \"came\": %ju, \"code\": %d}\n",
        (intmax_t)before, (intmax_t)after, (uintmax_t)(published - since), (uintmax_t)came,
        code == 1 ? 0 : code);
    close(fd);
}

static void fanout(char **arguments)
{
    unsigned least = atoi(arguments[7]);
    int64_t entered = nanoseconds(CLOCK_MONOTONIC);
    receiver_count = atoi(arguments[2]);
    window = atoi(arguments[3]);
    struct receiver *all = allocated(receiver_count * sizeof *all);
    struct epoll_event *events = allocated((receiver_count + 1) * sizeof *events);
    missing = allocated(window * sizeof *missing);
    published_at = allocated(window * sizeof *published_at);
    payload_count = 1;
    read_payloads(arguments[0]);
    watch(arguments + 8);
    missing[published++ % window] = receiver_count;
    enter_many(all, atoi(arguments[4]));
    while (complete < published)
        listen_once(events, false);
    int fd = publisher();
    last_moment = entered + PINGLESS / 2 * 1000000000LL;
    publish_on(fd, events, arguments + 5, least);
    if (least) {
        fflush(stdout); /* should the rest fail */
        last_moment = entered + PINGLESS * 1000000000LL;
        patience = STALLED_AFTER;
        uint64_t since = published;
        int64_t before = resident();
        int still = stalled();
        publish_on(fd, events, arguments + 5, least);
        print_stalled(still, since, before);
    }
    say_goodbye(fd);
    for (int i = 0; i < receiver_count; i++)
        say_goodbye(all[i].fd);
    see_off(fd, -1);
    for (int i = 0; i < receiver_count; i++)
        see_off(all[i].fd, i);
    write_stream(arguments[1]);
}

/* ---- rooms ---- */

struct membership {
    int channel;
    uint64_t received;             /* publications of that channel */
};

struct socket {
    int fd, index, count, room;
    struct membership *memberships;
    uint8_t *frame;                /* that is coming in */
    size_t got;
};

struct in_flight {
    int channel, missing;          /* members that have not got it yet */
    uint64_t number;               /* in the channel */
    int64_t at;
};

static uint64_t *numbers;          /* how many were published, by channel */
static struct in_flight *flights;  /* WINDOW of them; who is missing nobody is free */
static uint8_t *whole_frame;       /* as the server has to send it, but for the name and the number */
static size_t whole_head, whole_size;
static int channel_count;

static int members_of(int channel)
{
    int most = channel_count < MEMBERS_MOST ? channel_count : MEMBERS_MOST;
    return 1 + channel % most;
}

static void join_up(struct socket *all, int sockets)
{
    for (int channel = 0; channel < channel_count; channel++)
        for (int n = 0; n < members_of(channel); n++) {
            struct socket *s = &all[(channel + n * (sockets / MEMBERS_MOST)) % sockets];
            if (s->count == s->room)
                s->memberships = realloc(
                    s->memberships, (s->room = 2 * s->room + 4) * sizeof *s->memberships);
            s->memberships[s->count++] = (struct membership) { .channel = channel };
        }
}

static void enter_rooms(struct socket *s)
{
    static const uint8_t ready[] = { FIN | TEXT, 5, 'r', 'e', 'a', 'd', 'y' };
    char key[KEY_SIZE + 1], *names = allocated(strlen(path) + s->count * (CHANNEL + 1) + 1);
    const char *before = path;
    char *at = stpcpy(names, path);
    for (int i = 0; i < s->count; i++, at += CHANNEL) {
        if (i)
            *at++ = '-';
        put_digits(at, CHANNEL, s->memberships[i].channel);
    }
    path = names;
    s->fd = connected();
    ask(s->fd, key, false);
    answered(s->fd, key, false);
    receive_all(s->fd, s->frame, sizeof ready);
    if (memcmp(s->frame, ready, sizeof ready))
        fail("socket %d: was not told that it is in", s->index);
    path = before;
    free(names);
    nonblocking(s->fd);
    poll_for(s->fd, s, EPOLLIN, EPOLL_CTL_ADD);
}

static struct membership *membership(struct socket *s, int channel)
{
    for (int i = 0; i < s->count; i++)
        if (s->memberships[i].channel == channel)
            return &s->memberships[i];
    fail("socket %d: a publication of channel %d, where it is not", s->index, channel);
}

static struct in_flight *flight(int channel, uint64_t number)
{
    for (unsigned i = 0; i < window; i++)
        if (flights[i].missing && flights[i].channel == channel && flights[i].number == number)
            return &flights[i];
    fail("channel %d: publication %ju came once more than there are members", channel,
        (uintmax_t)number);
}

/* Is a whole frame what has to come next in its channel? */
static void check_publication(struct socket *s, int64_t now, bool counts)
{
    char name[CHANNEL + 1] = { 0 };
    memcpy(name, s->frame + whole_head, CHANNEL);
    int channel = atoi(name);
    memcpy(whole_frame + whole_head, name, CHANNEL);
    struct membership *m = membership(s, channel);
    put_digits(whole_frame + whole_head + STAMP_AT, STAMP, m->received);
    if (memcmp(whole_frame, s->frame, whole_size))
        fail("socket %d, channel %d: publication %ju is not what came", s->index, channel,
            (uintmax_t)m->received);
    struct in_flight *f = flight(channel, m->received++);
    count += counts;
    if (!--f->missing) {
        complete++;
        if (counts)
            took(now - f->at);
    }
}

static void attend_socket(struct socket *s, bool counts)
{
    static uint8_t buffer[READ];
    ssize_t got = recv(s->fd, buffer, sizeof buffer, 0);
    if (got == 0)
        fail("socket %d: the server ended it", s->index);
    if (got < 0 && errno != EAGAIN)
        fail("socket %d: receiving: %s", s->index, strerror(errno));
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    for (ssize_t at = 0; at < got;) {
        size_t piece = whole_size - s->got;
        if ((ssize_t)piece > got - at)
            piece = got - at;
        memcpy(s->frame + s->got, buffer + at, piece);
        at += piece, s->got += piece;
        if (s->got == whole_size) {
            check_publication(s, now, counts);
            s->got = 0;
        }
    }
}

/* To whatever channels chance says, so that all places are taken. */
static void publish_to_some(int fd, unsigned places)
{
    static uint64_t chance = 88172645463325252;
    uint8_t head[HEAD_MOST] = { 0 };
    size_t size = frame_head(head, FIN | TEXT, each, MASKED) + 4;
    uint8_t *frames = allocated(places * (size + each)), *at = frames;
    int64_t now = nanoseconds(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < window && places; i++) {
        if (flights[i].missing)
            continue;
        chance ^= chance << 13, chance ^= chance >> 7, chance ^= chance << 17;
        int channel = chance % channel_count;
        memcpy(at, head, size);
        memcpy(at + size, payloads, each);
        put_digits(at + size, CHANNEL, channel);
        put_digits(at + size + STAMP_AT, STAMP, numbers[channel]);
        flights[i] = (struct in_flight) { channel, members_of(channel), numbers[channel]++, now };
        at += size + each, places--, published++;
    }
    send_all(fd, frames, at - frames);
    free(frames);
}

static void rooms(char **arguments)
{
    int sockets = atoi(arguments[2]);
    channel_count = atoi(arguments[1]);
    window = atoi(arguments[3]);
    payload_count = 1;
    read_payloads(arguments[0]);
    watch(arguments + 6);
    numbers = allocated(channel_count * sizeof *numbers);
    flights = allocated(window * sizeof *flights);
    whole_frame = allocated(HEAD_MOST + each);
    whole_head = frame_head(whole_frame, FIN | TEXT, each, 0);
    whole_size = whole_head + each;
    memcpy(whole_frame + whole_head, payloads, each);
    struct socket *all = allocated(sockets * sizeof *all);
    struct epoll_event *events = allocated((sockets + 1) * sizeof *events);
    join_up(all, sockets);
    for (int i = 0; i < sockets; i++) {
        all[i].index = i, all[i].frame = allocated(whole_size + HEAD_MOST);
        enter_rooms(&all[i]);
    }
    int fd = publisher();
    begin(arguments[4], arguments[5]);
    publish_to_some(fd, window);
    while (complete < published) {
        bool ends_now = over();
        int number = epoll_wait(poller, events, sockets + 1, LOST_AFTER * 1000);
        if (number == 0)
            fail("%ju publications did not reach all members in %d s",
                (uintmax_t)(published - complete), LOST_AFTER);
        for (int i = 0; i < number; i++)
            if (!events[i].data.ptr)
                fail("the server sends something to the publisher, or ended it");
            else
                attend_socket(events[i].data.ptr, !ends_now);
        if (!ends_now && complete + window > published)
            publish_to_some(fd, window - (published - complete));
    }
    print_counted();
    say_goodbye(fd);
    for (int i = 0; i < sockets; i++)
        say_goodbye(all[i].fd);
    see_off(fd, -1);
    for (int i = 0; i < sockets; i++)
        see_off(all[i].fd, i);
}

/* ---- hold ---- */

static uint8_t *message, answer[1 << 16];
static size_t message_size, answer_size;
static int *held, held_count, said_count;
static size_t held_room;
static uint64_t pings;
static bool offering;

/* The masking key is of zeros. */
static void send_frame(int fd, int first, const uint8_t *payload, size_t size)
{
    uint8_t head[HEAD_MOST] = { 0 };
    size_t head_length = frame_head(head, first, size, MASKED) + 4;
    send_all(fd, head, head_length);
    send_all(fd, payload, size);
}

/* The next frame; RFC 6455, 5.5.2: a ping is answered. Returns its first byte. */
static int next_frame(int fd, uint8_t *payload, size_t most, size_t *size)
{
    uint8_t head[HEAD_MOST];
    receive_all(fd, head, 2);
    receive_all(fd, head + 2, head_size(head) - 2);
    *size = payload_size(head);
    if (*size > most)
        fail("%s: a frame of %zu bytes", path, *size);
    receive_all(fd, payload, *size);
    if (head[0] == (FIN | PING)) {
        send_frame(fd, FIN | PONG, payload, *size);
        pings++;
    }
    return head[0];
}

/* RFC 7692, 6: a compressed message has RSV1 set in its first frame. */
static void exchange(int fd)
{
    uint8_t came[sizeof answer];
    size_t size;
    int first;
    send_frame(fd, FIN | (offering ? RSV1 : 0) | TEXT, message, message_size);
    while ((first = next_frame(fd, came + 1, sizeof came - 1, &size)) == (FIN | PING))
        ;
    if ((first & ~RSV1) != (FIN | TEXT))
        fail("%s: 0x%02x and %zu bytes instead of a text", path, first, size);
    came[0] = first & RSV1;
    size++;
    if (!answer_size)
        memcpy(answer, came, answer_size = size);
    if (size != answer_size || memcmp(came, answer, size))
        fail("%s: two answers to one message", path);
}

static void hold_more(int number)
{
    held = grown(held, &held_room, held_count + number, sizeof *held);
    while (number--) {
        char key[KEY_SIZE + 1];
        int fd = connected();
        struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
        ask(fd, key, offering);
        answered(fd, key, offering);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event))
            fail("epoll: %s", strerror(errno));
        held[held_count++] = fd;
    }
}

static void print_held(void)
{
    printf("held ");
    for (size_t i = 0; i < answer_size; i++)
        printf("%02x", answer[i]);
    putchar('\n');
}

/* False at the end of the input. */
static bool obeyed(void)
{
    char line[64];
    int number;
    if (!fgets(line, sizeof line, stdin))
        return false;
    if (sscanf(line, "open %d", &number) == 1) {
        hold_more(number);
        print_held();
    } else if (!strcmp(line, "say\n") && message) {
        while (said_count < held_count)
            exchange(held[said_count++]);
        print_held();
    } else if (!strcmp(line, "pings\n")) {
        printf("pings %ju\n", (uintmax_t)pings);
    } else {
        fail("not open, say or pings: %s", line);
    }
    fflush(stdout);
    return true;
}

static void attend(int fd)
{
    uint8_t payload[125];
    size_t size;
    int first = next_frame(fd, payload, sizeof payload, &size);
    if (first != (FIN | PING))
        fail("%s: 0x%02x on a connection that waits", path, first);
}

static void hold(char **arguments)
{
    enum { MOST = 256 };
    struct epoll_event events[MOST], input = { .events = EPOLLIN, .data.fd = STDIN_FILENO };
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    offering = atoi(arguments[0]);
    if (!inet_aton(arguments[1], &from))
        fail("%s is no address", arguments[1]);
    if (arguments[2]) {
        payload_count = 1;
        read_payloads(arguments[2]);
        message = payloads, message_size = each;
    }
    if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &input))
        fail("the input is no pipe: %s", strerror(errno));
    for (;;) {
        int number = epoll_wait(poller, events, MOST, -1);
        bool told = false; /* that comes last: it may read what the others are ready with */
        for (int i = 0; i < number; i++)
            if (events[i].data.fd == STDIN_FILENO)
                told = true;
            else
                attend(events[i].data.fd);
        if (told && !obeyed())
            return;
    }
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
    else if (!strcmp(mode, "fanout") && number > 12)
        fanout(arguments + 4);
    else if (!strcmp(mode, "rooms") && number > 10)
        rooms(arguments + 4);
    else if (!strcmp(mode, "hold") && number > 5)
        hold(arguments + 4);
    else
        fail("load: echo, handshakes, fanout, rooms or hold, and what the top of load.c says");
    return 0;
}
