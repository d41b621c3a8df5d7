"""Fills a fresh cloud: projects, users, catalog, volume types, quotas, an image.

Idempotent: what exists is kept. Settings come from the environment (see `cloud`).
"""
import json
import os
import sys
import time
import urllib.error
import urllib.request

E = os.environ
KEYSTONE, CINDER = E['KEYSTONE_URL'], E['CINDER_URL']
GLANCE, COMPUTE = E['GLANCE_URL'], E['COMPUTE_URL']
TOKEN = None


def call(method, url, body=None, kind='application/json'):
    headers = {'Content-Type': kind, 'Accept': 'application/json'}
    if TOKEN:
        headers['X-Auth-Token'] = TOKEN
    data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
    request = urllib.request.Request(url, method=method, headers=headers, data=data)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
            return json.loads(text) if text else {}, answer.headers
    except urllib.error.HTTPError as error:
        sys.exit('%s %s: %s %s' % (method, url, error.code, error.read().decode()))


def wait(url):
    end = time.time() + 120
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).read()
            return
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return
        except OSError:
            pass
        if time.time() > end:
            sys.exit('nothing answers at ' + url)
        time.sleep(0.2)


def login(user, password, project):
    global TOKEN
    body, headers = call('POST', KEYSTONE + '/v3/auth/tokens', {'auth': {
        'identity': {'methods': ['password'], 'password': {'user': {
            'name': user, 'domain': {'id': 'default'}, 'password': password}}},
        'scope': {'project': {'name': project, 'domain': {'id': 'default'}}}}})
    TOKEN = headers['X-Subject-Token']
    return body['token']


def ensure(kind, plural, match, more=None):
    """The id of what matches in Keystone; it is made if there is none."""
    found, _ = call('GET', '%s/v3/%s' % (KEYSTONE, plural))
    for thing in found[plural]:
        if all(thing.get(key) == value for key, value in match.items()):
            return thing['id']
    made, _ = call('POST', '%s/v3/%s' % (KEYSTONE, plural), {kind: {**match, **(more or {})}})
    return made[kind]['id']


def ensure_type(base, name, specs):
    found, _ = call('GET', base + '/types?is_public=None')
    if name not in {one['name'] for one in found['volume_types']}:
        call('POST', base + '/types', {'volume_type': {
            'name': name, 'os-volume-type-access:is_public': True, 'extra_specs': specs}})


def ensure_image(name, path):
    found, _ = call('GET', '%s/v2/images?name=%s' % (GLANCE, name))
    if found['images']:
        return
    made, _ = call('POST', GLANCE + '/v2/images', {
        'name': name, 'disk_format': 'raw', 'container_format': 'bare', 'visibility': 'public'})
    with open(path, 'rb') as file:
        call('PUT', '%s/v2/images/%s/file' % (GLANCE, made['id']), file.read(),
             'application/octet-stream')


def main():
    wait(KEYSTONE + '/v3')
    admin = login('admin', E['ADMIN_PASSWORD'], 'admin')
    domain = {'domain_id': 'default'}
    roles = {name: ensure('role', 'roles', {'name': name})
             for name in ('admin', 'member', 'service')}
    projects = {name: ensure('project', 'projects', {'name': name}, domain)
                for name in ('service', 'mesos', 'other')}
    for name, password, project, its in (
            ('cinder', E['SERVICE_PASSWORD'], 'service', ('admin', 'service')),
            ('mesos', E['USER_PASSWORD'], 'mesos', ('member',)),
            ('other', E['USER_PASSWORD'], 'other', ('member',))):
        user = ensure('user', 'users', {'name': name}, {
            **domain, 'password': password, 'default_project_id': projects[project]})
        for role in its:
            call('PUT', '%s/v3/projects/%s/users/%s/roles/%s' % (
                KEYSTONE, projects[project], user, roles[role]))
    for kind, name, url in (
            ('volumev3', 'cinderv3', CINDER + '/v3/%(project_id)s'),
            ('block-storage', 'cinder', CINDER + '/v3/%(project_id)s'),
            ('image', 'glance', GLANCE),
            ('compute', 'nova', COMPUTE + '/v2.1')):
        service = ensure('service', 'services', {'type': kind}, {'name': name})
        for interface in ('public', 'internal', 'admin'):
            ensure('endpoint', 'endpoints', {'service_id': service, 'interface': interface},
                   {'region': 'RegionOne', 'url': url})
    wait(CINDER + '/')
    base = '%s/v3/%s' % (CINDER, admin['project']['id'])
    types = {
        'lvmdriver-1': {'volume_backend_name': 'file'},
        'solidfire': {'volume_backend_name': 'file'},
        'multiattach': {'volume_backend_name': 'file', 'multiattach': '<is> True'},
        'revoking': {'volume_backend_name': 'revoking'},
        'array': {'volume_backend_name': 'array'},
        'two-portals': {'volume_backend_name': 'two-portals'}}
    for name, specs in types.items():
        ensure_type(base, name, specs)
    call('PUT', '%s/os-quota-sets/%s' % (base, projects['mesos']), {'quota_set': {
        'volumes': 200, 'snapshots': 200, 'gigabytes': 10000}})
    wait(GLANCE + '/')
    ensure_image('partitioned', E['IMAGE_FILE'])
    with open(E['SEEDED'], 'w') as file:
        json.dump({'mesos': projects['mesos'], 'other': projects['other'],
                   'admin': admin['project']['id'], 'types': list(types)}, file)


main()
