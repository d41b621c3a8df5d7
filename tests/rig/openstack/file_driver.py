"""Cinder volume drivers whose volumes are sparse files, exported by tgtd.

FileDriver    one target a volume, with CHAP, by Cinder's own TgtAdm helper: the export is made at
              initialize_connection and removed at terminate_connection, as the LVM driver does
ArrayDriver   one target for all, each volume a LUN of it, as many storage arrays do; the lowest
              free LUN is given out again at once
RevokingDriver  as FileDriver, but each export has a secret of its own: a host that was cut off
              cannot log in again when the volume is exported to the next one. With FileDriver it
              can, as with the LVM driver: the target keeps its name and its secret

Hooks, read at every operation from `file_driver_dir`; OP is create, delete, extend, snapshot,
clone, export, connect or terminate:

  .delay-OP   seconds to sleep before OP
  .fail-OP    makes OP fail; its text is the reason
"""
import glob
import os
import re
import time

from oslo_config import cfg
from oslo_utils import importutils
from oslo_utils import units

from cinder import exception
from cinder.image import image_utils
from cinder import interface
from cinder import utils
from cinder.volume import configuration
from cinder.volume import driver

OPTS = [
    cfg.StrOpt('file_driver_dir', help='Directory of the volumes.'),
    cfg.IntOpt('file_driver_capacity_gb', default=2048,
               help='Capacity, in GiB, that the scheduler is told.'),
]
cfg.CONF.register_opts(OPTS, group=configuration.SHARED_CONF_GROUP)


@interface.volumedriver
class FileDriver(driver.VolumeDriver):
    VERSION = '1.0'
    CI_WIKI_NAME = 'none'
    SHARED_TARGETS = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.configuration.append_config_values(OPTS)
        self.target_driver = importutils.import_object(
            'cinder.volume.targets.tgt.TgtAdm',
            configuration=self.configuration, db=self.db,
            executor=self._execute)
        self.protocol = 'iSCSI'

    @property
    def root(self):
        return self.configuration.file_driver_dir

    def do_setup(self, context):
        os.makedirs(self.root, exist_ok=True)

    def check_for_setup_error(self):
        utils.execute('tgtadm', '--lld', 'iscsi', '--op', 'show', '--mode', 'target')

    def _path(self, thing):
        return os.path.join(self.root, thing['name'])

    def local_path(self, volume):
        return self._path(volume)

    def _hook(self, op):
        delay = os.path.join(self.root, '.delay-' + op)
        if os.path.exists(delay):
            with open(delay) as file:
                time.sleep(float(file.read() or 1))
        fail = os.path.join(self.root, '.fail-' + op)
        if os.path.exists(fail):
            with open(fail) as file:
                raise exception.VolumeBackendAPIException(
                    data=file.read().strip() or 'asked to fail: ' + op)

    @staticmethod
    def _grow(path, gib):
        with open(path, 'ab') as file:
            file.truncate(int(gib) * units.Gi)

    def _copy(self, source, target, gib=None):
        utils.execute('cp', '--sparse=always', '--reflink=auto', source, target)
        if gib:
            self._grow(target, gib)

    @staticmethod
    def _unlink(path):
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass

    # Volumes, snapshots, images.

    def create_volume(self, volume):
        self._hook('create')
        self._grow(self._path(volume), volume['size'])

    def delete_volume(self, volume):
        self._hook('delete')
        self._unlink(self._path(volume))

    def extend_volume(self, volume, new_size):
        self._hook('extend')
        self._grow(self._path(volume), new_size)
        self._resize_export(volume)

    def create_snapshot(self, snapshot):
        self._hook('snapshot')
        self._copy(os.path.join(self.root, snapshot['volume_name']), self._path(snapshot))

    def delete_snapshot(self, snapshot):
        self._unlink(self._path(snapshot))

    def create_volume_from_snapshot(self, volume, snapshot):
        self._hook('clone')
        self._copy(self._path(snapshot), self._path(volume), volume['size'])

    def create_cloned_volume(self, volume, src_vref):
        self._hook('clone')
        self._copy(self._path(src_vref), self._path(volume), volume['size'])

    def copy_image_to_volume(self, context, volume, image_service, image_id,
                             disable_sparse=False):
        # Into the file: this host need not be an iSCSI initiator.
        path = self._path(volume)
        image_utils.fetch_to_raw(context, image_service, image_id, path,
                                 self.configuration.volume_dd_blocksize, size=volume['size'])
        self._grow(path, volume['size'])

    # Exports. cinder-backup is on this machine, which is no initiator: it opens the files.

    @staticmethod
    def _is_backup(connector):
        return bool(connector) and connector.get('ip') == cfg.CONF.my_ip

    def create_export(self, context, volume, connector):
        self._hook('export')
        if self._is_backup(connector):
            return None
        info = self.target_driver.create_export(context, volume, self._path(volume))
        return {'provider_location': info['location'], 'provider_auth': info['auth']}

    def ensure_export(self, context, volume):
        self.target_driver.ensure_export(context, volume, self._path(volume))

    def remove_export(self, context, volume):
        self.target_driver.remove_export(context, volume)

    def _resize_export(self, volume):
        self.target_driver.extend_target(volume)

    def validate_connector(self, connector):
        return self._is_backup(connector) or self.target_driver.validate_connector(connector)

    def initialize_connection(self, volume, connector):
        self._hook('connect')
        if self._is_backup(connector):
            return {'driver_volume_type': 'local', 'data': {'device_path': self._path(volume)}}
        return self.target_driver.initialize_connection(volume, connector)

    def terminate_connection(self, volume, connector, **kwargs):
        self._hook('terminate')
        if self._is_backup(connector):
            # A restore writes the file anew, as far as the backup goes.
            self._grow(self._path(volume), volume['size'])
        return len(volume.volume_attachment) > 1

    def get_volume_stats(self, refresh=False):
        if refresh or not self._stats:
            total = self.configuration.file_driver_capacity_gb
            used = sum(os.path.getsize(path) for path in glob.glob(
                os.path.join(self.root, '*'))) / units.Gi
            name = self.configuration.volume_backend_name
            self._stats = {
                'volume_backend_name': name, 'vendor_name': 'rig',
                'driver_version': self.VERSION, 'storage_protocol': self.protocol,
                'shared_targets': self.SHARED_TARGETS, 'sparse_copy_volume': True,
                'pools': [{
                    'pool_name': name, 'total_capacity_gb': total,
                    'free_capacity_gb': round(total - used, 2),
                    'provisioned_capacity_gb': round(used, 2),
                    'reserved_percentage': 0, 'QoS_support': False,
                    'max_over_subscription_ratio': 20.0,
                    'thin_provisioning_support': True,
                    'thick_provisioning_support': False,
                    'multiattach': True, 'backend_state': 'up',
                    'filter_function': self.get_filter_function(),
                    'goodness_function': self.get_goodness_function()}]}
        return self._stats


@interface.volumedriver
class RevokingDriver(FileDriver):
    def remove_export(self, context, volume):
        # The secret first: Cinder ignores a failure of what follows. And tgtd does not delete a
        # target in which a command is still under way.
        self.db.volume_update(context, volume['id'], {'provider_auth': None})
        for _ in range(20):
            try:
                return super().remove_export(context, volume)
            except exception.ISCSITargetRemoveFailed:
                time.sleep(0.5)
        raise exception.ISCSITargetRemoveFailed(volume_id=volume['id'])


def tgtadm(mode, op, *arguments):
    out, _ = utils.execute('tgtadm', '--lld', 'iscsi', '--mode', mode, '--op', op, *arguments)
    return out


@interface.volumedriver
class ArrayDriver(FileDriver):
    SHARED_TARGETS = True
    TARGET_ID = '9000'
    CHAP = ('array', 'array-chap-secret')

    @property
    def iqn(self):
        return self.configuration.target_prefix + 'array'

    def _luns(self):
        """LUN numbers by backing file; None when the target is not there."""
        found = re.search(r'^Target %s: .*?(?=^Target |\Z)' % self.TARGET_ID,
                          tgtadm('target', 'show'), re.S | re.M)
        if not found:
            return None
        luns = re.findall(r'^ +LUN: (\d+)$.*?Backing store path: (.+?)$',
                          found.group(), re.S | re.M)
        return {path: int(lun) for lun, path in luns}

    @utils.synchronized('array')
    def _export(self, volume, lun=None):
        luns = self._luns()
        if luns is None:
            tid = ('--tid', self.TARGET_ID)
            tgtadm('target', 'new', *tid, '--targetname', self.iqn)
            user, password = self.CHAP
            tgtadm('account', 'new', '--user', user, '--password', password)
            tgtadm('account', 'bind', *tid, '--user', user)
            tgtadm('target', 'bind', *tid, '--initiator-address', 'ALL')
            luns = {}
        path = self._path(volume)
        if path not in luns:
            lun = lun or min(set(range(1, 255)) - set(luns.values()))
            tgtadm('logicalunit', 'new', '--tid', self.TARGET_ID, '--lun', str(lun),
                   '--backing-store', path)
            luns[path] = lun
        return luns[path]

    def create_export(self, context, volume, connector):
        self._hook('export')
        lun = self._export(volume)
        location = '%s:%s,1 %s %d' % (self.configuration.target_ip_address,
                                      self.configuration.target_port, self.iqn, lun)
        return {'provider_location': location, 'provider_auth': 'CHAP %s %s' % self.CHAP}

    def ensure_export(self, context, volume):
        if volume['provider_location']:
            self._export(volume, int(volume['provider_location'].split()[2]))

    @utils.synchronized('array')
    def remove_export(self, context, volume):
        lun = (self._luns() or {}).get(self._path(volume))
        if lun:
            tgtadm('logicalunit', 'delete', '--tid', self.TARGET_ID, '--lun', str(lun))

    def _resize_export(self, volume):
        pass    # As with some arrays, the LUN has its new size from the next export on.
