"""Point clouds: projection inverted, the crop, farthest points against a plain loop, surfaces of a known scene."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from flowleap.envs import rendering as gl
from flowleap.envs.point_clouds import CloudCamera, View, farthest_points, unproject, within
from flowleap.policy.core.errors import FlowleapError

mujoco = pytest.importorskip("mujoco")


def pixels(points: np.ndarray, fovy: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Row and column, from the image's upper left corner, where a pinhole camera sees points [N, 3] of its frame."""
    focal = (height / 2) / np.tan(np.radians(fovy) / 2)
    x, y, z = points.T
    return height / 2 - focal * y / -z, width / 2 + focal * x / -z


@pytest.mark.parametrize("pixel", [0.5, 0.0])
def test_points_are_seen_in_the_pixels_that_they_come_from(pixel):
    depth = np.random.default_rng(0).uniform(0.3, 3.0, (12, 20))
    depth[3, 4] = depth[11, 0] = 0.0
    points = unproject(depth, 50.0, pixel)
    rows, columns = np.nonzero(depth)
    seen = pixels(points, 50.0, 12, 20)
    np.testing.assert_allclose(seen[0], rows + pixel, atol=1e-9)
    np.testing.assert_allclose(seen[1], columns + pixel, atol=1e-9)
    np.testing.assert_array_equal(-points[:, 2], depth[depth > 0])


def test_known_points_are_recovered():
    """Points of one depth each, put where a camera would see them in the middle of a pixel."""
    known = np.array([[0.1, 0.2, -1.0], [-0.3, 0.1, -2.0], [0.0, -0.2, -1.5]])
    row, column = pixels(known, 60.0, 400, 400)
    depth = np.zeros((400, 400))
    depth[row.astype(int), column.astype(int)] = -known[:, 2]
    found = unproject(depth, 60.0)
    nearest = np.linalg.norm(found[:, None] - known[None], axis=-1).min(0)
    half_pixel = np.tan(np.radians(30)) / 400 * 2.0
    assert (nearest < np.sqrt(2) * half_pixel).all()


def test_the_crop_is_an_open_box():
    points = np.array([[0, 0, 0], [1, 0, 0], [0.5, -0.5, 0.9], [0.5, 0.5, 1.1]], float)
    low, high = np.array([-1.0, -1, -1]), np.array([1.0, 1, 1])
    np.testing.assert_array_equal(within(points, low, high), [True, False, True, False])


def plain_farthest(points: np.ndarray, count: int) -> list[int]:
    """The definition, point by point."""
    chosen = [0]
    while len(chosen) < count:
        distances = [min(float(((p - points[c]) ** 2).sum()) for c in chosen) for p in points]
        chosen.append(distances.index(max(distances)))
    return chosen


@pytest.mark.parametrize("seed", range(4))
def test_farthest_points_are_those_of_a_plain_loop(seed):
    """On a grid, where squared distances are whole numbers, many are equal, and float32 is exact."""
    points = np.random.default_rng(seed).integers(-20, 20, (80, 3)).astype(float)
    assert farthest_points(points, 24).tolist() == plain_farthest(points, 24)


def test_farthest_points_cover():
    """No point lies farther from the chosen ones than these lie from each other."""
    points = np.random.default_rng(1).normal(size=(600, 3))
    chosen = farthest_points(points, 64)
    assert len(set(chosen.tolist())) == 64
    among = np.linalg.norm(points[chosen][:, None] - points[chosen][None], axis=-1)
    to_chosen = np.linalg.norm(points[:, None] - points[chosen][None], axis=-1).min(1)
    assert to_chosen.max() <= among[~np.eye(64, dtype=bool)].min() + 1e-6


def test_too_few_points_are_repeated():
    points = np.random.default_rng(2).normal(size=(5, 3))
    np.testing.assert_array_equal(farthest_points(points, 12), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1])
    np.testing.assert_array_equal(farthest_points(points, 5), range(5))
    np.testing.assert_array_equal(farthest_points(np.zeros((9, 3)), 3), [0, 0, 0])
    with pytest.raises(FlowleapError, match="no point is left"):
        farthest_points(np.zeros((0, 3)), 4)


SCENE = """
<mujoco><statistic extent="2"/><worldbody>
  <light pos="0 0 3"/>
  <camera name="side" pos="1.2 -1.0 1.1" xyaxes="0.6 0.8 0 -0.4 0.3 0.9" fovy="55"/>
  <camera name="upside_down" pos="1.2 -1.0 1.1" xyaxes="-0.6 -0.8 0 0.4 -0.3 -0.9" fovy="55"/>
  <geom name="ball" type="sphere" size="0.2" pos="0.1 0.2 0.4" rgba="1 0 0 1"/>
  <geom name="box" type="box" size="0.15 0.1 0.2" pos="0.3 -0.3 0.2" rgba="0 0 1 1"/>
</worldbody></mujoco>
"""
BOX = View("side", 160, (0.2, 6.0), (-5, -5, -5), (5, 5, 5), 400, colours=True)


@pytest.fixture(scope="module")
def scene():
    """Model and data, or skip where no OpenGL backend works."""
    try:
        gl.choose_gl()
    except FlowleapError as error:
        pytest.skip(str(error))
    model = mujoco.MjModel.from_xml_string(SCENE)
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    return model, data


@pytest.mark.parametrize("camera", ["side", "upside_down"])
def test_a_cloud_lies_on_the_surfaces_of_the_scene(scene, camera):
    model, data = scene
    looks = CloudCamera(model, replace(BOX, camera=camera))
    cloud = looks(data)
    assert (cloud.shape, cloud.dtype) == ((400, 6), np.float32)
    np.testing.assert_array_equal(looks(data), cloud)
    red = cloud[:, 3] > cloud[:, 5]
    assert 50 < red.sum() < 350
    radius = np.linalg.norm(cloud[red, :3] - [0.1, 0.2, 0.4], axis=1)
    assert np.abs(radius - 0.2).max() < 3e-3  # m; MuJoCo draws a ball with flat faces
    outside = np.abs(cloud[~red, :3] - [0.3, -0.3, 0.2]) - [0.15, 0.1, 0.2]
    assert np.abs(outside.max(1)).max() < 1e-3
    assert ((outside > -1e-3).sum(0) > 10).sum() >= 2  # more than one side of it is seen
    looks.close()


def test_the_box_and_the_frame_are_the_views_own(scene):
    model, data = scene
    only_ball = CloudCamera(model, replace(BOX, low=(-0.2, 0.0, 0.0), high=(0.4, 0.5, 1.0), colours=False))
    cloud = only_ball(data)
    assert cloud.shape == (400, 3)
    assert np.abs(np.linalg.norm(cloud - [0.1, 0.2, 0.4], axis=1) - 0.2).max() < 3e-3
    only_ball.close()
    own = CloudCamera(model, replace(BOX, rotation=np.eye(3)))  # the camera's axes
    pose = data.camera("side")
    back = own(data)[:, :3] @ pose.xmat.reshape(3, 3).T + pose.xpos
    world = CloudCamera(model, BOX)
    distance = np.linalg.norm(back[:, None] - world(data)[None, :, :3], axis=-1)
    assert distance.min(1).max() < 1e-5
    for camera in (own, world):
        camera.close()
    nothing = CloudCamera(model, replace(BOX, low=(4.0, 4.0, 4.0)))
    with pytest.raises(FlowleapError, match="'side' sees nothing between"):
        nothing(data)
    nothing.close()


def test_depth_is_cut_where_it_is_told_to_and_leaves_the_model_alone(scene):
    model, data = scene
    before = model.vis.map.znear, model.vis.map.zfar
    renderer = gl.OffscreenRenderer(model, ["side"], 64)
    image, depth = renderer.render_depth(data, "side", 0.2, 1.6)
    assert (model.vis.map.znear, model.vis.map.zfar) == before
    assert image.shape == (64, 64, 3)
    assert depth[depth > 0].max() < 1.6
    assert (renderer.render_depth(data, "side", 0.2, 6.0)[1] > 0).sum() > (depth > 0).sum() > 0
    renderer.close()
