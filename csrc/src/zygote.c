/*
 * zygote.c - the process from which workers are born, and which collects
 * their dead.
 *
 *     pool's process ──control socket── zygote ──fork or spawn──▶ worker
 *           ▲  BORN + 4 descriptors, DIED, TROUBLE, BROKEN ◀──┘
 *           └──▶ KILL, REJECT, GROW, RETIRE, STOP
 *
 * It is C from end to end, although a fork of an interpreter: what it does
 * not touch is never copied, and a worker that it forks finds the interpreter
 * as the pool's process left it, as if forked from there.  (One that was
 * exec'd returns to its interpreter for hints, see fm_zygote_run().)
 *
 * Guarantees
 *   - A worker that dies is reported and replaced at once, with nobody awake
 *     in the pool's process.
 *   - More abnormal deaths than the options allow: BROKEN, and no more
 *     replacements (a fork bomb ends by itself).
 *   - It ends when the pool's process ends (parent_fd, else the socket's
 *     end), and its workers with it: the kernel kills them when it dies, or
 *     they find their channel closed.
 * Invariants
 *   - Only the zygote signals and reaps workers.  It holds the zombie until
 *     it has forgotten the pid, so no signal ever hits a stranger.
 *   - Between two turns of the loop it holds no channel end of a living
 *     worker (but where descriptors in flight can be lost with their
 *     sender's copy: fm__sys_holds_sent).
 * Threads: one.
 */
#include "internal.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>

#define GRACE_NS 500000000         /* between the rungs of the ladder */
#define REFUSED_PAUSE_NS 250000000 /* the pool breaks meanwhile: the
                                    * initializer is not run in a loop */
#define ALONE_NS 1000000           /* the first worker of a pool has the CPUs
                                    * to itself: its caller may be waiting */
#define TELL_PAUSE_NS 5000000      /* to the next try of a message */
#define NUMBER 12                  /* characters of an int, and its end */

/* What reaches a whole process group. */
static const int group[] = {SIGINT, SIGTERM, SIGHUP};

/* To the next try of a birth that failed. */
static const int64_t backoff_ns[] = {50000000, 200000000, 800000000,
                                     2000000000};

/* The worker of a slot, or (pid 0) when the next one is due. */
struct child {
    pid_t pid;
    uint32_t generation;
    fm_page *memory;
    int held[FM_MESSAGE_FDS]; /* that may still be in flight; -1: none */
    bool asked;               /* the pool had it killed */
    bool rejected;            /* ... because it had no room for it */
    bool leaving;             /* it shall have no successor */
    int64_t due;              /* FM_FOREVER: no birth is due */
};

struct fm_zygote {
    const struct fm_zygote_options *options;
    pid_t pid;
    int control, parent; /* -1: gone */
    int watch;           /* readable when a child has ended */
    int first[5];        /* as in the options; -1: used */
    struct child *children;
    uint32_t living;
    uint32_t failures;   /* births that failed in a row */
    uint32_t rejections; /* births that the pool could not take, in a row */
    int64_t *deaths;     /* abnormal ones within deaths_ns, oldest first */
    size_t n_deaths, room;
    int64_t oom_kills;
    bool begun, stopping, broken;
    int64_t term_at, kill_at;
};

static int64_t backoff(uint32_t failures)
{
    return backoff_ns[FM__MIN(failures, ARRAY_LEN(backoff_ns) - 1)];
}

static void no_births(fm_zygote *z)
{
    for (uint32_t i = 0; i < z->options->workers; i++)
        z->children[i].due = FM_FOREVER;
}

/* ---------------------------------------------------------------- ladder */

/* A worker that gets SIGTERM from anybody else may finish its task. */
static void end_one(const struct child *child, int sig)
{
    atomic_store(&child->memory->told, 1);
    fm__sys_kill(child->pid, sig);
}

static void end_all(fm_zygote *z, int sig)
{
    for (uint32_t i = 0; i < z->options->workers; i++)
        if (z->children[i].pid)
            end_one(&z->children[i], sig);
}

static void climb(fm_zygote *z)
{
    int64_t now = fm_now();
    if (now >= z->kill_at) {
        z->term_at = z->kill_at = FM_FOREVER;
        end_all(z, SIGKILL);
    } else if (now >= z->term_at) {
        z->term_at = FM_FOREVER;
        end_all(z, SIGTERM);
    }
}

static void stop(fm_zygote *z, int ladder)
{
    int64_t now = fm_now(), term = FM_FOREVER, end = now;
    if (ladder == FM_LADDER_GENTLE) {
        term = now + GRACE_NS;
        end = now + 2 * GRACE_NS;
    } else if (ladder == FM_LADDER_TERM) {
        term = now;
        end = now + GRACE_NS;
    }
    z->stopping = true;
    no_births(z);
    z->term_at = FM__MIN(z->term_at, term);
    z->kill_at = FM__MIN(z->kill_at, end);
    climb(z);
}

/* The pool's process is gone: nobody will read anything any more. */
static void orphaned(fm_zygote *z)
{
    stop(z, FM_LADDER_KILL);
    fm__sys_close(z->control);
    fm__sys_close(z->parent);
    z->control = z->parent = -1;
}

/* Waits for as long as it takes: a pool that does not read now will, or its
 * end of the socket closes. */
static void tell(fm_zygote *z, struct fm_message message, const int *fds,
                 int nfds)
{
    int rc = 0;
    message.magic = FM_MAGIC;
    while (z->control >= 0 && (rc = fm_message_send(z->control, &message, fds,
                                                    nfds)) < 0) {
        if (fm__sys_passes(rc))
            fm__pause(TELL_PAUSE_NS);
        else
            orphaned(z);
    }
}

/* ---------------------------------------------------------------- deaths */

static uint16_t oom_flag(fm_zygote *z)
{
    int64_t before = z->oom_kills;
    z->oom_kills = fm_sys_oom_kills();
    return before >= 0 && z->oom_kills > before ? FM_DIED_OOM : 0;
}

/* How long the successor of a dead worker has to wait. */
static int64_t pause_after(fm_zygote *z, const struct child *child,
                           int status)
{
    if (child->rejected)
        return backoff(z->rejections++);
    z->rejections = 0;
    bool refused = WIFEXITED(status) &&
                   WEXITSTATUS(status) == z->options->refused_status;
    return refused ? REFUSED_PAUSE_NS : 0;
}

/* False: there is no memory to remember it. */
static bool remember_death(fm_zygote *z, int64_t now)
{
    if (z->n_deaths == z->room) {
        size_t room = z->room ? 2 * z->room : 16;
        int64_t *more = fm__malloc(room * sizeof *more);
        if (!more)
            return false;
        if (z->n_deaths)
            memcpy(more, z->deaths, z->n_deaths * sizeof *more);
        free(z->deaths);
        z->deaths = more;
        z->room = room;
    }
    z->deaths[z->n_deaths++] = now;
    return true;
}

static void count_death(fm_zygote *z, int64_t now)
{
    size_t old = 0;
    while (old < z->n_deaths && now - z->deaths[old] > z->options->deaths_ns)
        old++;
    z->n_deaths -= old;
    if (old && z->n_deaths)
        memmove(z->deaths, z->deaths + old, z->n_deaths * sizeof *z->deaths);
    if (remember_death(z, now) && z->n_deaths <= z->options->most_deaths)
        return;
    z->broken = true;
    no_births(z);
    tell(z, (struct fm_message){.kind = FM_REPORT_BROKEN}, NULL, 0);
}

static void let_go(struct child *child)
{
    for (int i = 0; i < FM_MESSAGE_FDS; i++) {
        fm__sys_close(child->held[i]);
        child->held[i] = -1;
    }
    fm_page_unmap(child->memory);
    child->memory = NULL;
    child->pid = 0;
}

static void bury(fm_zygote *z, uint32_t slot, pid_t pid, int status,
                 uint64_t rss_kb)
{
    struct child *child = &z->children[slot];
    struct fm_message died = {.kind = FM_REPORT_DIED,
                              .slot = slot,
                              .generation = child->generation,
                              .pid = pid,
                              .status = status,
                              .rss_kb = rss_kb};
    bool retired = fm_page_retired(child->memory);
    if (retired)
        died.flags |= FM_DIED_RETIRED;
    bool excused = fm_page_excused(child->memory);
    if (child->asked)
        died.flags |= FM_DIED_ASKED;
    else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)
        died.flags |= oom_flag(z);
    let_go(child);
    z->living--;
    tell(z, died, NULL, 0);
    if (z->stopping || z->broken || child->leaving)
        return;
    int64_t now = fm_now();
    child->due = now + pause_after(z, child, status);
    if (!retired && !child->asked && !excused)
        count_death(z, now);
}

/* ---------------------------------------------------------------- orders */

static void kill_one(fm_zygote *z, const struct fm_message *order)
{
    struct child *child = &z->children[order->slot];
    if (!child->pid || child->generation != order->generation)
        return;
    if (order->kind == FM_REPORT_KILL && fm__sys_has_ended(child->pid))
        return; /* it died by itself, and that is what shall be told */
    child->asked = true;
    child->rejected = order->kind == FM_REPORT_REJECT;
    end_one(child, order->status);
}

/* There shall be a worker in the slot, from now on. */
static void grow(fm_zygote *z, struct child *child)
{
    if (!z->broken && !z->stopping && !child->pid &&
        child->due == FM_FOREVER)
        child->due = 0;
}

static void retire(struct child *child, uint32_t generation)
{
    if (child->generation != generation)
        return; /* it died by itself, and was replaced */
    child->leaving = true;
    child->due = FM_FOREVER; /* it may have died by itself */
}

static void obey(fm_zygote *z)
{
    struct fm_message order;
    int fds[FM_MESSAGE_FDS], nfds;
    while (z->control >= 0 && fm_sys_wait_readable(&z->control, 1, 0) > 0) {
        int rc = fm_message_recv(z->control, &order, fds, &nfds);
        if (rc < 0)
            orphaned(z);
        if (rc <= 0)
            return;
        for (int i = 0; i < nfds; i++)
            fm__sys_close(fds[i]);
        if (order.kind == FM_REPORT_STOP)
            stop(z, order.status);
        else if (order.slot >= z->options->workers)
            continue;
        else if (order.kind == FM_REPORT_KILL ||
                 order.kind == FM_REPORT_REJECT)
            kill_one(z, &order);
        else if (order.kind == FM_REPORT_GROW)
            grow(z, &z->children[order.slot]);
        else if (order.kind == FM_REPORT_RETIRE)
            retire(&z->children[order.slot], order.generation);
    }
}

static void reap(fm_zygote *z)
{
    pid_t pid;
    int status;
    uint64_t rss_kb;
    while (z->living > 0 &&
           (pid = fm__sys_reap_any(&status, &rss_kb)) > 0) {
        for (uint32_t i = 0; i < z->options->workers; i++) {
            if (z->children[i].pid == pid) {
                /* One that retires dies after the pool has said so. The
                 * pid may be somebody else's from here on. */
                z->children[i].pid = 0;
                obey(z);
                bury(z, i, pid, status, rss_kb);
                break;
            }
        }
    }
}

/* ---------------------------------------------------------------- births */

/* An interpreter of its own: argv ends with its descriptors, our pid, the
 * shared memory and its slot. */
static int spawn_worker(const fm_zygote *z, const int ends[3], uint32_t slot,
                        pid_t *pid)
{
    const int values[6] = {ends[0], ends[1],
                           ends[2], z->pid,
                           z->options->share_fd, (int)slot};
    char numbers[6][NUMBER];
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    sigset_t every;
    size_t n = 0;
    while (z->options->spawn[n])
        n++;
    char **argv = fm__malloc((n + 7) * sizeof *argv);
    if (!argv)
        return -ENOMEM;
    memcpy(argv, z->options->spawn, n * sizeof *argv);
    for (size_t i = 0; i < 6; i++) {
        snprintf(numbers[i], NUMBER, "%d", values[i]);
        argv[n + i] = numbers[i];
    }
    argv[n + 6] = NULL;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    /* dup2() onto itself clears close-on-exec, in the child only. */
    const int kept[5] = {ends[0], ends[1], ends[2], z->options->spawn_fd,
                         z->options->share_fd};
    int rc = 0;
    for (int i = 0; rc == 0 && i < 5; i++)
        if (kept[i] >= 0)
            rc = posix_spawn_file_actions_adddup2(&actions, kept[i], kept[i]);
    for (size_t i = 0; rc == 0 && i < z->options->hand_count; i++) {
        int fd = z->options->hand_fds[i];
        rc = posix_spawn_file_actions_adddup2(&actions, fd, fd);
    }
    /* Until the worker is ready for them (fm_signals_install). */
    sigfillset(&every);
    posix_spawnattr_setsigmask(&attributes, &every);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
    if (rc == 0)
        rc = posix_spawn(pid, argv[0], &actions, &attributes, argv,
                         fm__sys_environment());
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    free(argv);
    return -rc;
}

/* In the forked child: let go of all that is the zygote's. */
static void become_worker(fm_zygote *z, const int ends[3], uint32_t slot,
                          struct fm_birth *born)
{
    if (fm_sys_die_with_parent(z->pid) < 0)
        _exit(0);
    for (uint32_t i = 0; i < z->options->workers; i++)
        let_go(&z->children[i]);
    fm__sys_close(z->watch);
    fm__sys_close(z->control);
    fm__sys_close(z->parent);
    fm__sys_close(z->options->spawn_fd);
    for (int i = 0; i < 5; i++)
        fm__sys_close(z->first[i]);
    fm__sys_close(z->options->hint_fd);
    free(z->children);
    free(z->deaths);
    free(z);
    *born = (struct fm_birth){ends[0], ends[1], ends[2], slot};
}

/* Task pipe, result pipe, slot; on error all that is not -1 is the
 * caller's. */
static int make_channel(int made[5])
{
    int rc = fm_sys_pipe(made);
    if (rc == 0)
        rc = fm_sys_pipe(made + 2);
    if (rc < 0)
        return rc;
    made[4] = fm_page_create();
    return FM__MIN(made[4], 0);
}

static void forget_first(fm_zygote *z)
{
    memset(z->first, -1, sizeof z->first);
}

/* Start one worker and send the pool its ends.  1: this is the worker. */
static int bear(fm_zygote *z, uint32_t slot, struct fm_birth *born)
{
    int made[5] = {-1, -1, -1, -1, -1}; /* task, result, slot */
    bool early = slot == 0 && z->first[0] >= 0;
    struct child *child = &z->children[slot];
    fm_page *page = NULL;
    pid_t pid = 0;
    int rc = early ? 0 : make_channel(made);
    const int *fds = early ? z->first : made;
    int ends[3] = {fds[0], fds[3], fds[4]};
    if (rc == 0)
        rc = fm_page_map(fds[4], &page);
    if (rc == 0 && z->options->spawn)
        rc = spawn_worker(z, ends, slot, &pid);
    else if (rc == 0 && (pid = fork()) < 0)
        rc = -errno;
    if (rc == 0 && pid == 0) {
        close(fds[1]);
        close(fds[2]);
        fm_page_unmap(page);
        if (early)
            forget_first(z);
        become_worker(z, ends, slot, born);
        return 1;
    }
    int sent[FM_MESSAGE_FDS] = {fds[0], fds[1], fds[2], fds[4]};
    bool held = rc == 0 && !early && fm__sys_holds_sent();
    if (rc == 0) {
        *child = (struct child){.pid = pid,
                                .generation = child->generation + 1,
                                .memory = page,
                                .held = {-1, -1, -1, -1},
                                .due = FM_FOREVER};
        z->living++;
        if (held)
            memcpy(child->held, sent, sizeof sent);
        tell(z,
             (struct fm_message){.kind = FM_REPORT_BORN,
                                 .slot = slot,
                                 .generation = child->generation,
                                 .pid = pid},
             sent, early ? 0 : FM_MESSAGE_FDS);
    } else {
        fm_page_unmap(page);
    }
    if (rc < 0 && early)
        return rc; /* the next try needs them */
    for (int i = 0; i < FM_MESSAGE_FDS; i++)
        if (!held)
            fm__sys_close(sent[i]);
    fm__sys_close(fds[3]);
    if (early)
        forget_first(z);
    return rc;
}

/* Start the workers that are due.  1: this is one of them. */
static int give_birth(fm_zygote *z, struct fm_birth *born)
{
    int64_t now = fm_now();
    for (uint32_t i = 0; i < z->options->workers; i++) {
        struct child *child = &z->children[i];
        if (z->stopping) /* the pool went away while it was told of one */
            return 0;
        if (child->due > now)
            continue;
        int rc = bear(z, i, born);
        if (rc > 0)
            return 1;
        if (rc == 0) {
            z->failures = 0;
            continue;
        }
        child->due = fm_now() + backoff(z->failures++);
        tell(z,
             (struct fm_message){
                 .kind = FM_REPORT_TROUBLE, .slot = i, .status = -rc},
             NULL, 0);
    }
    return 0;
}

/* ------------------------------------------------------------------ loop */

/* True: there is a hint. */
static bool wait_news(fm_zygote *z)
{
    int64_t until = FM__MIN(z->term_at, z->kill_at);
    int fds[4] = {z->watch}, n = 1, parent_at = -1, hint_at = -1;
    for (uint32_t i = 0; i < z->options->workers; i++)
        until = FM__MIN(until, z->children[i].due);
    if (until != FM_FOREVER)
        until = FM__MAX(until - fm_now(), 0);
    if (z->control >= 0)
        fds[n++] = z->control;
    if (z->parent >= 0)
        fds[parent_at = n++] = z->parent;
    if (z->options->hint_fd >= 0 && !z->stopping)
        fds[hint_at = n++] = z->options->hint_fd;
    int ready = fm_sys_wait_readable(fds, n, until);
    if (ready > 0 && ready & 1)
        fm__sys_watch_clear(z->watch);
    if (ready > 0 && parent_at > 0 && ready >> parent_at & 1)
        orphaned(z);
    return ready > 0 && hint_at > 0 && ready >> hint_at & 1;
}

/*
 * Handlers of the pool's process are code that belongs there: what has one
 * stays blocked.  Ctrl-C, SIGTERM and SIGHUP may reach the whole group, but it
 * is the pool's process that decides what becomes of us; workers are born with
 * those blocked, until they are ready for them (fm_signals_install).
 */
static void calm_signals(void)
{
    struct sigaction act = {.sa_handler = SIG_DFL}, now;
    sigset_t blocked;
    sigemptyset(&act.sa_mask);
    sigaction(SIGCHLD, &act, NULL); /* SIG_IGN is inherited: no statuses */
    act.sa_handler = SIG_IGN;
    sigaction(SIGPIPE, &act, NULL);
    sigemptyset(&blocked);
    for (size_t i = 0; i < ARRAY_LEN(group); i++) {
        sigaction(group[i], &act, NULL);
        sigaddset(&blocked, group[i]);
    }
    for (int i = 1; i < NSIG; i++)
        if (sigaction(i, NULL, &now) == 0 && now.sa_handler != SIG_DFL &&
            now.sa_handler != SIG_IGN)
            sigaddset(&blocked, i);
    sigaddset(&blocked, SIGCHLD); /* the watch tells of it */
    sigprocmask(SIG_SETMASK, &blocked, NULL);
}

int fm_zygote_detach(const int *keep, size_t n, char *const *variables)
{
    int null = fm_sys_null(), rc = 0;
    if (null < 0)
        return null;
    for (int fd = 0; rc == 0 && fd <= 2; fd++)
        if ((fd == 0 || fcntl(fd, F_GETFD) < 0) && dup2(null, fd) < 0)
            rc = -errno;
    close(null);
    for (; rc == 0 && *variables; variables++)
        if (putenv(*variables) != 0)
            rc = -errno;
    return rc < 0 ? rc : fm_sys_silence_others(keep, n);
}

int fm_zygote_open(fm_zygote **out, const struct fm_zygote_options *options)
{
    fm_zygote *z = fm__malloc(sizeof *z);
    struct child *children = fm__calloc(options->workers * sizeof *children);
    calm_signals();
    int watch = z && children ? fm__sys_watch_children() : -ENOMEM;
    if (watch < 0) {
        free(children);
        free(z);
        return watch;
    }
    *z = (fm_zygote){.options = options,
                     .pid = getpid(),
                     .control = options->control_fd,
                     .parent = options->parent_fd,
                     .watch = watch,
                     .children = children,
                     .oom_kills = -1,
                     .term_at = FM_FOREVER,
                     .kill_at = FM_FOREVER};
    memcpy(z->first, options->first, sizeof z->first);
    uint32_t least = options->least ? options->least : options->workers;
    int64_t others = options->first[0] >= 0 ? fm_now() + ALONE_NS : 0;
    for (uint32_t i = 0; i < options->workers; i++) {
        memset(children[i].held, -1, sizeof children[i].held);
        children[i].due = i >= least ? FM_FOREVER : i ? others : 0;
    }
    *out = z;
    return 0;
}

int fm_zygote_run(fm_zygote *z, struct fm_birth *born)
{
    if (!z->begun) {
        z->begun = true;
        if (give_birth(z, born))
            return 1;
        z->oom_kills = fm_sys_oom_kills();
    }
    while (z->living > 0 || !z->stopping) {
        bool hint = wait_news(z);
        /* Orders before deaths: what dies because of a STOP is not
         * replaced. */
        obey(z);
        reap(z);
        climb(z);
        if (!z->stopping && give_birth(z, born))
            return 1;
        if (hint && !z->stopping)
            return FM_ZYGOTE_HINT; /* who died has its successor */
    }
    return 0; /* what is left ends with the process */
}
