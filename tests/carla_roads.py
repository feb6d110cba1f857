"""A small OpenDRIVE map for tests of the CARLA simulator: `carla.Map` reads it without a simulator.

Seen from above in OpenDRIVE's axes (y to the left): road 1 runs 120 m straight along +x to a junction, which is
left straight on (road 10 to road 2, 120 m) or by a quarter circle of 15 m radius to the left (road 11 to road 3, 80 m).
Each road has one lane of 3.5 m in its direction, to the right of its reference line, and 2 m of sidewalk beside it.
CARLA's y axis points to the right: its coordinates of a point are OpenDRIVE's with y negated.
"""

from __future__ import annotations

import math

LANE_WIDTH_M = 3.5
SIDEWALK_M = 2.0
APPROACH_M = 120.0
CROSSING_M = 20.0
TURN_RADIUS_M = 15.0
TURN_M = TURN_RADIUS_M * math.pi / 2

_LANES = f"""<lanes><laneSection s="0"><center><lane id="0" type="none" level="false">
<roadMark sOffset="0" type="solid" weight="standard" color="standard" width="0.12" laneChange="none"/></lane></center>
<right><lane id="-1" type="driving" level="false">{{link}}<width sOffset="0" a="{LANE_WIDTH_M}" b="0" c="0" d="0"/>
<roadMark sOffset="0" type="solid" weight="standard" color="standard" width="0.12" laneChange="none"/></lane>
<lane id="-2" type="sidewalk" level="false"><width sOffset="0" a="{SIDEWALK_M}" b="0" c="0" d="0"/>
<roadMark sOffset="0" type="none" weight="standard" color="standard" width="0.1" laneChange="none"/></lane>
</right></laneSection></lanes>"""
_SAME_LANE = '<link><predecessor id="-1"/><successor id="-1"/></link>'


def _road(
    number: int,
    start: tuple[float, float, float],
    length: float,
    *,
    junction: int = -1,
    curvature: float = 0,
    link: str,
) -> str:
    x, y, heading = start
    shape = f'<arc curvature="{curvature}"/>' if curvature else "<line/>"
    return (
        f'<road name="road {number}" length="{length}" id="{number}" junction="{junction}"><link>{link}</link>'
        f'<type s="0" type="town"><speed max="50" unit="km/h"/></type>'
        f'<planView><geometry s="0" x="{x}" y="{y}" hdg="{heading}" length="{length}">{shape}</geometry></planView>'
        '<elevationProfile><elevation s="0" a="0" b="0" c="0" d="0"/></elevationProfile><lateralProfile/>'
        f"{_LANES.format(link=_SAME_LANE if junction >= 0 else '')}<objects/><signals/></road>"
    )


def opendrive() -> str:
    """The map's OpenDRIVE text."""
    into_junction = '<successor elementType="junction" elementId="100"/>'
    from_junction = '<predecessor elementType="junction" elementId="100"/>'

    def between(before: int, after: int) -> str:
        return (
            f'<predecessor elementType="road" elementId="{before}" contactPoint="end"/>'
            f'<successor elementType="road" elementId="{after}" contactPoint="start"/>'
        )

    turn_end = (APPROACH_M + TURN_RADIUS_M, TURN_RADIUS_M, math.pi / 2)
    roads = (
        _road(1, (0.0, 0.0, 0.0), APPROACH_M, link=into_junction),
        _road(2, (APPROACH_M + CROSSING_M, 0.0, 0.0), APPROACH_M, link=from_junction),
        _road(3, turn_end, 80.0, link=from_junction),
        _road(10, (APPROACH_M, 0.0, 0.0), CROSSING_M, junction=100, link=between(1, 2)),
        _road(11, (APPROACH_M, 0.0, 0.0), TURN_M, junction=100, curvature=1 / TURN_RADIUS_M, link=between(1, 3)),
    )
    connections = "".join(
        f'<connection id="{index}" incomingRoad="1" connectingRoad="{road}" contactPoint="start">'
        '<laneLink from="-1" to="-1"/></connection>'
        for index, road in enumerate((10, 11))
    )
    return (
        '<?xml version="1.0" standalone="yes"?><OpenDRIVE><header revMajor="1" revMinor="4" name="fork" version="1" '
        'north="0" south="0" east="0" west="0"><geoReference><![CDATA[+proj=tmerc +lat_0=49 +lon_0=8]]></geoReference>'
        f'</header>{"".join(roads)}<junction id="100" name="fork">{connections}</junction></OpenDRIVE>'
    )
