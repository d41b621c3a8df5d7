"""cinder-api, -scheduler, -volume and -backup in one process: services.py --config-file FILE

They are the stock services, started as green threads of one process, so that the in-process
message bus (transport_url = fake://) suffices: no RabbitMQ, and one import of Cinder instead of
three. The file that READY_FILE names is written once all have started.
"""
import os
import sys
import threading

import eventlet
eventlet.monkey_patch()
import __original_module_threading as original_threading  # noqa: E402
original_threading.current_thread.__globals__['_active'] = threading._active

from oslo_config import cfg  # noqa: E402
from oslo_log import log as logging  # noqa: E402
from oslo_service import service as oslo_service  # noqa: E402

from cinder import i18n  # noqa: E402
i18n.enable_lazy()
import cinder.privsep  # noqa: E402
from cinder.common import config  # noqa: E402
from cinder import coordination  # noqa: E402
from cinder import objects  # noqa: E402
from cinder import rpc  # noqa: E402
from cinder import service  # noqa: E402
from cinder import version  # noqa: E402
import os_brick  # noqa: E402
import os_brick.privileged  # noqa: E402

CONF = cfg.CONF
CONF.register_opt(cfg.StrOpt('cluster', default=None))


def main():
    objects.register_all()
    CONF(sys.argv[1:], project='cinder', version=version.version_string())
    config.set_middleware_defaults()
    logging.setup(CONF, 'cinder')
    # This process is root's already: what needs root runs here, not in a helper.
    cinder.privsep.sys_admin_pctxt.set_client_mode(False)
    os_brick.privileged.default.set_client_mode(False)
    os_brick.setup(CONF)
    coordination.COORDINATOR.start()
    rpc.init(CONF)
    launcher = oslo_service.ServiceLauncher(CONF)
    servers = [service.Service.create(binary='cinder-scheduler')]
    for backend in CONF.enabled_backends:
        servers.append(service.Service.create(
            host='%s@%s' % (CONF.host, backend), service_name=backend,
            binary='cinder-volume', coordination=True))
    servers.append(service.Service.create(
        binary='cinder-backup', service_name='backup', coordination=True, process_number=1,
        semaphore=eventlet.semaphore.Semaphore(1)))
    servers.append(service.WSGIService('osapi_volume'))
    waiting = set(servers)
    for server in servers:
        server.start = announced(server, server.start, waiting)
        launcher.launch_service(server)
    sys.exit(launcher.wait())


def announced(server, start, waiting):
    """`start` of a server, which then writes the file when it was the last one."""
    def run():
        start()
        waiting.discard(server)
        if not waiting:
            with open(os.environ['READY_FILE'], 'w') as file:
                file.write('%d\n' % os.getpid())
    return run


if __name__ == '__main__':
    main()
