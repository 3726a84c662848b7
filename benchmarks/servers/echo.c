/* The limit: a server with one epoll that does what RFC 6455 makes it do and nothing else.
 *
 *   echo PORT
 *
 * It unmasks in place, puts its own head before the payload, and writes all that one read brought
 * with one send; what comes at /publish to all who have asked for /listen and, behind that, for the
 * channel whose name the first six digits are. Nothing is checked.
 */

#define _GNU_SOURCE
#include "websocket.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ROOM = 1 << 12, EVENTS = 1024, LISTEN = 1024, DIGITS = 6, CHANNELS = 1000000 };

/* What has come in and is not yet whole, and what the socket did not take yet. */
struct connection {
    int fd;
    bool open, closing, blocked, publishes, touched;
    uint8_t *in, *out;
    size_t in_size, in_room, out_size, out_room;
    int *channels, channel_count;
};

struct list {
    struct connection **items;
    size_t count, room;
};

static int poller;
static struct list *members, touched; /* by channel; those with something to write */

static void append(struct list *list, struct connection *c)
{
    if (list->count == list->room) {
        list->room = 2 * list->room + 4;
        list->items = realloc(list->items, list->room * sizeof *list->items);
    }
    list->items[list->count++] = c;
}

static void drop(struct list *list, const struct connection *c)
{
    for (size_t i = 0; i < list->count; i++)
        if (list->items[i] == c)
            list->items[i--] = list->items[--list->count];
}

static void watch(int fd, void *who, uint32_t what, int operation)
{
    struct epoll_event event = { .events = what, .data.ptr = who };
    epoll_ctl(poller, operation, fd, &event);
}

static void leave(struct connection *c)
{
    for (int i = 0; i < c->channel_count; i++)
        drop(&members[c->channels[i]], c);
    close(c->fd);
    free(c->channels);
    free(c->in);
    free(c->out);
    free(c);
}

static void put(struct connection *c, int first, const uint8_t *payload, size_t size)
{
    if (c->out_size + size + HEAD_MOST > c->out_room) {
        c->out_room = 2 * (c->out_size + size + HEAD_MOST);
        c->out = realloc(c->out, c->out_room);
    }
    c->out_size += frame_head(c->out + c->out_size, first, size, 0);
    memcpy(c->out + c->out_size, payload, size);
    c->out_size += size;
}

static int name_at(const uint8_t *digits)
{
    int name = 0;
    for (int i = 0; i < DIGITS; i++)
        name = 10 * name + digits[i] % 16 % 10;
    return name;
}

/* The names are six digits each, with one character between them. */
static void listen_in(struct connection *c, const uint8_t *names)
{
    size_t size = strcspn((const char *)names, " ");
    c->channels = allocated((size / DIGITS + 1) * sizeof *c->channels);
    for (size_t at = 0; at + DIGITS <= size; at += DIGITS + 1)
        append(&members[c->channels[c->channel_count++] = name_at(names + at)], c);
    put(c, FIN | TEXT, (const uint8_t *)"ready", 5);
}

static void publish(const struct list *to, int first, const uint8_t *payload, size_t size)
{
    for (size_t i = 0; i < to->count; i++) {
        put(to->items[i], first, payload, size);
        if (!to->items[i]->touched)
            append(&touched, to->items[i]);
        to->items[i]->touched = true;
    }
}

/* RFC 6455, 4.2.2. */
static bool upgraded(struct connection *c)
{
    char *end = memmem(c->in, c->in_size, "\r\n\r\n", 4), answer[256], accept[ACCEPT_SIZE + 1];
    if (!end)
        return false;
    *end = 0;
    const char *key = strcasestr((char *)c->in, "\r\nSec-WebSocket-Key: ");
    if (!key || end - key < 21 + KEY_SIZE)
        return false;
    accept_of(key + 21, accept);
    int size = snprintf(answer, sizeof answer,
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Accept: %s\r\n\r\n",
        accept);
    send(c->fd, answer, size, MSG_NOSIGNAL);
    c->publishes = !memcmp(c->in, "GET /publish ", 13);
    if (!memcmp(c->in, "GET /listen/", 12))
        listen_in(c, c->in + 12);
    c->in_size -= end + 4 - (char *)c->in;
    memmove(c->in, end + 4, c->in_size);
    return c->open = true;
}

static void echo(struct connection *c)
{
    size_t at = 0;
    while (c->in_size - at >= 2 && c->in_size - at >= head_size(c->in + at)) {
        uint8_t *head = c->in + at, *payload = head + head_size(head);
        size_t size = payload_size(head);
        if (c->in_size - at < head_size(head) + size)
            break;
        mask(payload, size, payload - 4, 0);
        c->closing = (head[0] & 15) == CLOSE;
        if (c->publishes && !c->closing && size >= DIGITS)
            publish(&members[name_at(payload)], head[0], payload, size);
        else
            put(c, head[0], payload, size);
        at += head_size(head) + size;
    }
    c->in_size -= at;
    memmove(c->in, c->in + at, c->in_size);
}

/* Whether the connection goes on. */
static bool written(struct connection *c)
{
    ssize_t sent = c->out_size ? send(c->fd, c->out, c->out_size, MSG_NOSIGNAL) : 0;
    if (sent < 0 && errno != EAGAIN)
        return false;
    bool blocked = sent < (ssize_t)c->out_size;
    if (sent > 0) {
        c->out_size -= sent;
        memmove(c->out, c->out + sent, c->out_size);
    }
    if (blocked != c->blocked)
        watch(c->fd, c, blocked ? EPOLLOUT : EPOLLIN, EPOLL_CTL_MOD);
    c->blocked = blocked;
    return blocked || !c->closing;
}

static bool served(struct connection *c, uint32_t events)
{
    if (events & EPOLLOUT)
        return written(c);
    if (c->in_size == c->in_room)
        c->in = realloc(c->in, c->in_room *= 2);
    ssize_t got = recv(c->fd, c->in + c->in_size, c->in_room - c->in_size, 0);
    if (got <= 0)
        return got < 0 && errno == EAGAIN;
    c->in_size += got;
    if (!c->open && !upgraded(c))
        return true;
    echo(c);
    for (; touched.count; touched.count--) {
        written(touched.items[touched.count - 1]);
        touched.items[touched.count - 1]->touched = false;
    }
    return !c->out_size || written(c);
}

static int listening(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };
    int one = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, LISTEN))
        fail("port %d: %s", port, strerror(errno));
    return fd;
}

static void enter(int listener)
{
    int one = 1, fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *c = allocated(sizeof *c);
    c->fd = fd;
    c->in = allocated(c->in_room = ROOM);
    watch(fd, c, EPOLLIN, EPOLL_CTL_ADD);
}

int main(int number, char **arguments)
{
    static struct epoll_event events[EVENTS];
    if (number != 2)
        fail("echo PORT");
    int listener = listening(atoi(arguments[1]));
    poller = epoll_create1(0);
    members = allocated(CHANNELS * sizeof *members);
    watch(listener, NULL, EPOLLIN, EPOLL_CTL_ADD);
    for (;;) {
        int ready = epoll_wait(poller, events, EVENTS, -1);
        for (int i = 0; i < ready; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c)
                enter(listener);
            else if (!served(c, events[i].events))
                leave(c);
        }
    }
}
