/*
 * reaper.c - the pool's side of its zygote.
 *
 * The zygote forks, reaps and signals workers; this side reads its reports,
 * asks it to kill, and collects the zygote's own exit status.
 *
 * Guarantees: never blocks on a process but in fm__reaper_await(), which has
 * a deadline; waits for exactly one pid, the zygote's, and never for any child
 * (P1 of the rules: a library must not steal another's statuses); touches no
 * signal handler.  ECHILD (somebody ignores SIGCHLD) means "gone, status
 * unknown" (-1).
 * Threads: the pool's mutex is held around every call.
 */
#include "internal.h"

#define ASK_WAIT_NS 100000000

void fm__reaper_init(struct fm__reaper *reaper, int control_fd, pid_t zygote)
{
    *reaper = (struct fm__reaper){
        .control_fd = control_fd, .pid_fd = -1, .reaped = true};
    fm__guard_fd(control_fd);
    if (zygote > 0)
        fm__reaper_adopt(reaper, zygote);
}

void fm__reaper_adopt(struct fm__reaper *reaper, pid_t zygote)
{
    reaper->zygote = zygote;
    reaper->reaped = false;
    reaper->pid_fd = fm_sys_pidfd(zygote);
    if (reaper->pid_fd >= 0)
        fm__guard_fd(reaper->pid_fd);
}

void fm__reaper_unwatch(struct fm__reaper *reaper)
{
    if (reaper->pid_fd >= 0) {
        fm__unguard_fd(reaper->pid_fd);
        fm__sys_close(reaper->pid_fd);
    }
    reaper->pid_fd = -1;
}

int fm__reaper_next(struct fm__reaper *reaper, struct fm_message *message,
                    int fds[FM_MESSAGE_FDS], int *nfds)
{
    if (reaper->ended)
        return FM_EEOF;
    int rc = fm_message_recv(reaper->control_fd, message, fds, nfds);
    if (rc < 0)
        reaper->ended = true;
    return rc;
}

int fm__reaper_ask(struct fm__reaper *reaper, enum fm_report kind,
                   uint32_t slot, uint32_t generation, int status)
{
    struct fm_message message = {.magic = FM_MAGIC,
                                 .kind = (uint16_t)kind,
                                 .slot = slot,
                                 .generation = generation,
                                 .status = status};
    if (reaper->ended)
        return FM_EEOF;
    int rc = fm_message_send(reaper->control_fd, &message, NULL, 0);
    if (fm__sys_passes(rc)) {
        /* The zygote reads at once unless it is stopped; give it a moment
         * rather than lose the request. */
        int64_t until = fm_now() + ASK_WAIT_NS;
        struct timespec pause = {0, 1000000};
        while (fm__sys_passes(rc) && fm_now() < until) {
            nanosleep(&pause, NULL);
            rc = fm_message_send(reaper->control_fd, &message, NULL, 0);
        }
    }
    return rc;
}

bool fm__reaper_collect(struct fm__reaper *reaper)
{
    if (!reaper->reaped) {
        int rc = fm__sys_reap(reaper->zygote, &reaper->status);
        if (rc < 0)
            reaper->status = -1;
        reaper->reaped = rc != 0;
    }
    return reaper->reaped;
}

int fm__reaper_await(struct fm__reaper *reaper, int64_t until)
{
    int64_t now = fm_now();
    if (!fm__reaper_collect(reaper) && reaper->pid_fd >= 0 && now < until)
        fm_sys_wait_readable(&reaper->pid_fd, 1, until - now);
    return fm__reaper_collect(reaper) ? reaper->status : -1;
}

void fm__reaper_kill(struct fm__reaper *reaper)
{
    /* Not reaped: the pid is still its own, a zombie at the least. */
    if (!fm__reaper_collect(reaper))
        fm__sys_kill(reaper->zygote, SIGKILL);
}

void fm__reaper_fini(struct fm__reaper *reaper)
{
    if (reaper->control_fd >= 0) {
        fm__unguard_fd(reaper->control_fd);
        fm__sys_close(reaper->control_fd);
    }
    fm__reaper_unwatch(reaper);
    reaper->control_fd = -1;
    reaper->ended = true;
}
